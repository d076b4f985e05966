"""The demo's own data set: two-second clips of drawn people who talk, in the files that real data come in.

A clip is an mp4 (H.264, AAC), a 16 kHz wav and an OpenFace 2 table. Three faces and three voices make six emotions, so
that each face and each voice belongs to two of them and only both together tell which emotion is meant.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import soundfile
from rich.progress import track

from affect.core.facs import ACTION_UNITS
from affect.core.files import atomic_write
from examples.demo.face import FPS, SIZE, draw_person, film
from examples.demo.voice import MANNERS, RATE, draw_speaker, speak

SECONDS = 2
FRAMES = SECONDS * FPS

EMOTIONS = {
    "happy": ("smile", "lively"),
    "content": ("smile", "soft"),
    "sad": ("frown", "soft"),
    "angry": ("frown", "harsh"),
    "surprised": ("startle", "lively"),
    "afraid": ("startle", "harsh"),
}
"""Emotion -> its face and its voice."""

FACES = {
    "smile": {"AU06": 2.6, "AU12": 3.2},
    "frown": {"AU04": 3.0, "AU15": 2.7, "AU17": 2.4},
    "startle": {"AU01": 2.8, "AU02": 2.6, "AU05": 2.4, "AU26": 2.4},
}
"""Face -> its action units and how strong they are at their height, 0..5."""

FOLDERS = {"video": "mp4", "audio": "wav", "openface": "csv"}
"""Folder of each kind of file and the ending of its names."""

INTENSITY_UNITS = tuple(unit for unit in ACTION_UNITS if unit != "AU28")  # OpenFace only says whether it is there
OPENFACE_COLUMNS = (
    *("frame", "face_id", "timestamp", "confidence", "success"),
    *(f"{unit}_r" for unit in INTENSITY_UNITS),
    *(f"{unit}_c" for unit in ACTION_UNITS),
)

SPOKEN = [
    "I|we|she|he|they|my brother|our neighbour|the new teacher|your aunt|Anna from the office|somebody|the old man",
    "left|saw|brought|moved|painted|forgot|is looking for|wants to sell|already took|will fetch|never liked|showed me",
    "the keys|three boxes|a blue folder|your coat|the letter|some of the pictures|that bicycle|the last page|"
    "a cup of tea|the garden table|their tickets|my umbrella",
    "in the hall|at the station|upstairs|on the second street to the left|behind the door|near the bus stop|"
    "by the window|next to the shop|in the car|at school|outside|",
    "this morning|after lunch|at nine|on Sunday|a bit later|in September|before the meeting|while it rained|again|"
    "for the first time||as I told you yesterday",
]
"""Who did what to what, where and when: of each one, or none, makes a line."""


SPEECHES = 20
"""Different words in all clips: were they others in each, a model would learn clips by their words."""


def speech(rng: random.Random) -> str:
    """Return what is said in a clip: mostly one line, at most four."""
    lines = []
    for _ in range(rng.choice([1, 1, 1, 1, 1, 1, 2, 4])):
        line = " ".join(filter(None, (rng.choice(part.split("|")) for part in SPOKEN)))
        lines.append(line[0].upper() + line[1:] + ".")
    return " ".join(lines)


@dataclass(frozen=True)
class Scene:
    """One row of the clips' table."""

    name: str
    split: str
    identity: str
    subtitle: str
    emotion: str
    face: str
    voice: str
    openset: str


def make_clips(root: Path, seed: int, count: int = 240, test_share: float = 0.25, processes: int = 2) -> Path:
    """Make `count` clips under `root` and return the path of their table, `clips.csv`.

    Each person acts every emotion about once; `test_share` of the people are kept for the test split. The same seed
    gives the same clips for any number of processes. Raises ValueError for fewer than 12 clips or a share outside 0..1.
    """
    scenes = plan_scenes(seed, count, test_share)
    context = get_context("spawn")  # a fork copies locks that the threads of torch and OpenCV may hold
    with ProcessPoolExecutor(processes, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        made = pool.map(partial(make_clip, root, seed), range(count), scenes, chunksize=4)
        for _ in track(made, description="making clips", total=count):
            pass
    with atomic_write(root / "clips.csv") as handle:
        pd.DataFrame(scenes).to_csv(handle, index=False, lineterminator="\n")
    return root / "clips.csv"


def plan_scenes(seed: int, count: int, test_share: float) -> list[Scene]:
    """Say who acts what in each of `count` clips, with emotions balanced in both splits."""
    if count < 12 or not 0 < test_share < 1:
        raise ValueError(
            f"{count} clips with a test share of {test_share}: expected at least 12 clips, so that two people act "
            "all six emotions, and a share between 0 and 1; raise the count or correct the share"
        )
    rng, words, scenes = np.random.default_rng([seed, 0]), random.Random(seed), []
    said = [speech(words) for _ in range(SPEECHES)]
    people = round(count / len(EMOTIONS))
    tested = rng.permutation(people)[: int(np.clip(round(people * test_share), 1, people - 1))]
    for index in range(count):
        person = index * people // count
        split = "test" if person in tested else "train"
        emotion, cues = list(EMOTIONS.items())[index % len(EMOTIONS)]
        scenes.append(
            Scene(
                f"clip_{index:04d}", split, f"person_{person:03d}", words.choice(said), emotion, *cues, str([emotion])
            )
        )
    return scenes


def make_clip(root: Path, seed: int, index: int, scene: Scene) -> None:
    """Write the three files of one clip.

    Chance comes from the seed, the person and the index alone, and apart for what is heard and what is seen.
    """
    video, audio, openface = (root / folder / f"{scene.name}.{ending}" for folder, ending in FOLDERS.items())
    for path in (video, audio, openface):
        path.parent.mkdir(parents=True, exist_ok=True)
    person = np.random.default_rng([seed, 1, int(scene.identity.removeprefix("person_"))])
    looks, speaker = draw_person(person), draw_speaker(person)
    sound = speak(speaker, MANNERS[scene.voice], SECONDS, np.random.default_rng([seed, 2, index]))
    rng = np.random.default_rng([seed, 3, index])
    units = act(FACES[scene.face], rng)
    soundfile.write(audio, sound, RATE, subtype="PCM_16")
    openface.write_text(openface_table(units, rng))
    _write_mp4(video, film(looks, units, rng), sound)


def act(face: dict[str, float], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Let a face rise to its height and fall again while the lips talk and the eyes blink.

    The lips keep a rhythm of their own, so that the face tells nothing of the voice. Returns the intensity 0..5 of each
    of INTENSITY_UNITS in each frame, [FRAMES].
    """
    t = np.arange(FRAMES)
    units = {unit: np.full(FRAMES, rng.uniform(0, 0.12)) for unit in INTENSITY_UNITS}
    onset, rise, hold = rng.uniform(0, 5), rng.uniform(6, 10), rng.uniform(3, 12)
    left, strength = rng.uniform(0.25, 0.55), rng.uniform(0.85, 1.2)
    for unit, height in face.items():
        begin = onset + rng.normal(0, 1)
        up = _smoothstep((t - begin) / rise)
        down = 1 - (1 - left) * _smoothstep((t - begin - rise - hold) / rng.uniform(8, 14))
        units[unit] = units[unit] + height * strength * rng.uniform(0.8, 1.2) * up * down
    beat = np.cumsum(rng.normal(rng.uniform(3, 5), 0.8, FRAMES)) / FPS  # syllables
    talk = np.sin(np.pi * beat) ** 2 * _smoothstep((t - 3) / 4) * _smoothstep((FRAMES - 3 - t) / 4)
    units["AU25"] = units["AU25"] + rng.uniform(0.8, 2.0) * talk + 0.6 * units["AU26"]
    units["AU26"] = units["AU26"] + rng.uniform(0.2, 0.9) * talk
    for middle in rng.uniform(6, FRAMES, rng.integers(0, 3)):
        units["AU45"] = units["AU45"] + rng.uniform(1.8, 2.8) * np.exp(-(((t - middle) / 1.8) ** 2))
    return {unit: np.clip(intensity, 0, 5) for unit, intensity in units.items()}


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def openface_table(units: dict[str, np.ndarray], rng: np.random.Generator) -> str:
    """Measure `units` as OpenFace 2 would, with noise, false alarms and lost frames; returns the text of a CSV."""
    frames = len(units["AU12"])
    t = np.arange(frames)
    seen = np.stack([units[unit] * rng.uniform(0.85, 1.1) for unit in INTENSITY_UNITS], axis=1)
    for wrong in rng.choice(len(INTENSITY_UNITS) - 1, 4, replace=False):  # all but the blink
        seen[:, wrong] += rng.uniform(0.2, 1.1) * np.exp(-(((t - rng.uniform(0, frames)) / rng.uniform(4, 12)) ** 2))
    confidence, success = np.full(frames, 0.98), np.ones(frames, int)
    unsure = rng.random(frames) < 0.06
    confidence[unsure] = rng.choice([0.78, 0.82, 0.88, 0.92], unsure.sum())
    seen += rng.normal(0, 1, seen.shape) * (0.06 + 0.2 * unsure[:, None])
    seen = np.clip(seen - 0.12, 0, 5)  # OpenFace too shows nothing for faint movement
    present = seen > rng.normal(1, 0.15, seen.shape[1])
    present ^= rng.random(seen.shape) < 0.01
    present = np.insert(present, -1, rng.random(frames) < 0.01, axis=1)  # AU28
    if rng.random() < 0.6:
        lost = slice(start := rng.integers(frames), start + rng.integers(1, 4))
        confidence[lost], success[lost], seen[lost], present[lost] = 0.02, 0, 0, False
    text = io.StringIO()
    rows = np.column_stack([t + 1, np.zeros(frames), t / FPS, confidence, success, seen, present])
    formats = ["%d", "%d", "%.3f", "%.2f", "%d", *["%.2f"] * (rows.shape[1] - 5)]
    np.savetxt(text, rows, formats, delimiter=", ", header=", ".join(OPENFACE_COLUMNS), comments="")
    return text.getvalue()


def _write_mp4(path: Path, frames: Iterable[np.ndarray], sound: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, width=SIZE, height=SIZE, pix_fmt="yuv420p")
        video.options = {"preset": "ultrafast", "crf": "23"}
        video.codec_context.thread_count = 1  # the number of threads changes what x264 writes
        audio = container.add_stream("aac", rate=RATE, layout="mono", options={"aac_coder": "fast"})
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(video.encode())
        spoken = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None], "fltp", "mono")
        spoken.sample_rate = RATE
        container.mux([*audio.encode(spoken), *audio.encode()])
