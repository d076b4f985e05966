"""The known data sets in their true folder layout, a few clips each, as tests write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

OPEN = {"a1": "['happy', 'excited']", "a2": "", "a3": "['worried']"}
MER = {"train_corpus": {"m1": "happy", "m2": "worried"}, "test1_corpus": {"m3": "neutral"}}
IEMOCAP = {"Ses01F_impro01_F000": 0, "Ses04M_impro02_M001": 3, "Ses05F_impro01_F000": 2, "Ses05M_script01_M005": 1}
VALENCES = {"train_corpus": {"v1": -1.0, "v2": 0.0}, "test_corpus": {"v3": 0.4}}


def write_table(path: Path, **columns: list[str]) -> None:
    """Write a CSV table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


def write_subtitles(path: Path, names: list[str]) -> None:
    """Write what each clip says in two languages."""
    write_table(path, name=names, chinese=[f"{name} 说" for name in names], english=[f"{name} says" for name in names])


def write_corpora(path: Path, key: str, corpora: Mapping[str, Mapping[str, object]]) -> None:
    """Write corpora as the publishers do: pickled dicts of dicts, numbers those of numpy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numpy_numbers = {int: np.int64, float: np.float32}
    np.savez_compressed(
        path,
        **{
            corpus: {
                name: {key: numpy_numbers.get(type(value), type(value))(value), "other": "x"}
                for name, value in clips.items()
            }
            for corpus, clips in corpora.items()
        },
    )


def _mer2025(root: Path) -> None:
    folder = root / "mer2025-dataset"
    names = list(OPEN)
    for name in ("mercaptionplus", "ovmerd"):
        write_table(folder / f"track2_train_{name}.csv", name=names, openset=list(OPEN.values()))
        # in another order, to be joined by name
        reasons = [f"{clip} shows it." for clip in names]
        write_table(folder / f"track3_train_{name}.csv", name=names[::-1], reason=reasons[::-1])
    write_table(folder / "track2_test.csv", name=["t1"], openset=["['sad']"])
    write_table(folder / "track1_train_disdim.csv", name=["d1"], discrete=["happy"])
    write_table(folder / "track_all_candidates.csv", name=["t1", "t2", "t3"])
    write_subtitles(folder / "subtitle_chieng.csv", [*names, "t1", "t2"])


def _corpora(
    folder: str, file: str, key: str, corpora: Mapping[str, Mapping[str, object]], words: str = ""
) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        write_corpora(root / folder / file, key, corpora)
        names = [name for clips in corpora.values() for name in clips]
        write_subtitles(root / folder / (words or "transcription-engchi-polish.csv"), names)

    return write


def _ovmerdplus(root: Path) -> None:
    folder = root / "ovmerdplus-process"
    write_table(folder / "ovlabel.csv", name=list(OPEN), openset=list(OPEN.values()))
    write_table(folder / "subtitle_eng.csv", name=list(OPEN), sentence=[f"{name} says" for name in OPEN])


WRITERS: dict[str, Callable[[Path], None]] = {
    "mercaptionplus": _mer2025,
    "ovmerd": _mer2025,
    "mer2025ov": _mer2025,
    "mer2023": _corpora("mer2023-dataset-process", "label-6way.npz", "emo", MER),
    "mer2024": _corpora("mer2024-dataset-process", "label-6way.npz", "emo", MER, "transcription_merge.csv"),
    "meld": _corpora(
        "meld-process", "label.npz", "emo", {"train_corpus": {"x0": 0, "x3": 3}, "test_corpus": {"x6": 6, "x5": 5}}
    ),
    "iemocap": _corpora("iemocap-process", "label_4way.npz", "emo", {"whole_corpus": IEMOCAP}),
    "cmumosi": _corpora("cmumosi-process", "label.npz", "val", VALENCES),
    "cmumosei": _corpora("cmumosei-process", "label.npz", "val", {**VALENCES, "val_corpus": {"v4": -2.5}}),
    "sims": _corpora("sims-process", "label.npz", "val", VALENCES),
    "simsv2": _corpora("simsv2-process", "label.npz", "val", VALENCES),
    "ovmerdplus": _ovmerdplus,
}
"""Data set -> function that writes it below a data root."""
