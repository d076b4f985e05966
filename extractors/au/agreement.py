"""How well an AU backend agrees with OpenFace on the same videos: Pearson r of every action unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from affect.core.facs import ACTION_UNITS
from extractors.au.landmarks import LEAST_R, landmark_table
from extractors.au.openface import read_openface
from extractors.au.pyfeat import pyfeat_table
from extractors.run.session import find_video

TABLES: dict[str, Callable[[Path], pd.DataFrame]] = {"mediapipe": landmark_table, "pyfeat": pyfeat_table}


@dataclass(frozen=True)
class Agreement:
    """How well one action unit agrees with OpenFace; NaN where nothing can be compared."""

    unit: str
    pooled: float
    """Pearson r over the frames of all videos."""
    held_out: float
    """The same after the values of each person were scaled to fit OpenFace on the other persons."""
    mean: float
    """Mean of the r of each video in which both tools see the unit change."""
    videos: int
    """Number of those videos."""

    @property
    def passes(self) -> bool:
        """Whether the unit is worth reporting: r over all frames is large enough, with the person held out too."""
        return self.pooled >= LEAST_R and self.held_out >= LEAST_R


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's r of two series [N]; NaN where one does not change or there are fewer than two numbers."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def pair_frames(measured: pd.DataFrame, openface: pd.DataFrame) -> pd.DataFrame:
    """Return the frames in which both tables have a face; OpenFace's columns end in `_openface`."""
    both = measured[measured["face"]].merge(openface[openface["face"]], on="frame", suffixes=("", "_openface"))
    return both.filter(regex=r"^AU\d\d_r")


def agreement(unit: str, pairs: Mapping[str, pd.DataFrame], persons: Mapping[str, str]) -> Agreement:
    """Return how well a unit agrees over the paired frames of each video; `persons` says who is in which."""
    series = {name: frames[[f"{unit}_r", f"{unit}_r_openface"]].to_numpy() for name, frames in pairs.items()}
    ours, theirs = np.concatenate(list(series.values())).T
    who = np.concatenate([[persons[name]] * len(frames) for name, frames in series.items()])
    scaled = np.zeros_like(ours)
    for person in set(who):
        own = who == person
        strength = ours[~own] @ ours[~own]
        scaled[own] = np.clip(ours[own] * (ours[~own] @ theirs[~own] / strength if strength else 0.0), 0, 5)
    of_videos = [r for frames in series.values() if np.isfinite(r := pearson(*frames.T))]
    return Agreement(
        unit,
        pearson(ours, theirs),
        pearson(scaled, theirs),
        float(np.mean(of_videos)) if of_videos else float("nan"),
        len(of_videos),
    )


def compare(
    table_of: Callable[[Path], pd.DataFrame], videos: Mapping[Path, Path], persons: Mapping[str, str]
) -> tuple[list[Agreement], int]:
    """Return the agreement of every unit that both measure, and the number of frames that it rests on.

    `videos` is OpenFace table -> video, `persons` name of the video -> who is in it.
    Raises ValueError where no frame has a face in both.
    """
    pairs = {}
    for table, video in track(videos.items(), "comparing", total=len(videos), console=Console(stderr=True)):
        pairs[table.stem] = pair_frames(table_of(video), read_openface(table))
    frames = sum(map(len, pairs.values()))
    if frames == 0:
        raise ValueError("no frame has a face in both tables: expected the same videos in both; check the folders")
    columns = set.intersection(*(set(pair) for pair in pairs.values()))
    units = [unit for unit in ACTION_UNITS if f"{unit}_r_openface" in columns]
    return [agreement(unit, pairs, persons) for unit in units], frames


def find_pairs(openface_root: Path, video_root: Path) -> dict[Path, Path]:
    """Return the video of every OpenFace table that has one; raises FileNotFoundError where none has."""
    found = {path: find_video(video_root, path.stem) for path in sorted(openface_root.glob("*.csv"))}
    pairs = {table: video for table, video in found.items() if video is not None}
    if not pairs:
        raise FileNotFoundError(
            f"{openface_root}: expected tables NAME.csv of videos NAME.* in {video_root}, found no such pair; "
            "check both folders"
        )
    return pairs


def agreement_rows(agreements: Sequence[Agreement]) -> list[list[str]]:
    """Return the cells of the table, the header first."""
    header = ["AU", "name", "r", "r, person held out", "mean r of videos", "videos", f"at least {LEAST_R}"]
    cells = [header]
    for a in agreements:
        figures = ["–" if np.isnan(r) else f"{r:.2f}" for r in (a.pooled, a.held_out, a.mean)]
        cells.append([a.unit, ACTION_UNITS[a.unit].name, *figures, str(a.videos), "yes" if a.passes else "no"])
    return cells


def as_markdown(cells: Sequence[Sequence[str]]) -> str:
    """Return rows of cells, the header first, as a Markdown table."""
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
