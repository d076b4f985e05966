"""Clips per second of the extraction driver, where its time goes, and how that compares with the encoders alone."""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from affect.core.au_json import find_au_json, read_au_json, sentences
from affect.core.schema import STORED_MODALITIES, Modality
from extractors.run.clip import ENCODER_BATCH, prepare_clip
from extractors.run.driver import run as run_session
from extractors.run.journal import FOLDER, RunReport
from extractors.run.session import Session, Settings, list_clips

DEFAULTS = {"visual_encoder": "DCT", "acoustic_encoder": "PROSODY", "au_encoder": "HASHED_NGRAMS"}
"""Encoders that need no weights."""
WRITER = "benchmark"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of this benchmark."""
    add = parser.add_argument
    add("--video_root", type=Path, required=True)
    add("--openface_root", type=Path, help="OpenFace tables; without them no action units are extracted")
    add("--match", default="", help="only clips whose names begin like this")
    add("--copies", type=int, default=1, help="times that every clip is taken")
    for name, encoder in DEFAULTS.items():
        add(f"--{name}", default=encoder)
    add("--random-init", "--random_init", action="store_true", help="encoders of the true size with random weights")
    add("--compare_bare", action="store_true", help="also time the encoders alone on the same arrays")
    add("--device", default="cpu")
    add("--num_workers", type=int, default=2)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Extract the clips into a folder that is deleted afterwards; return the figures."""
    encoders = {name: getattr(args, name) for name in DEFAULTS}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if args.random_init:
            use_random_weights(encoders.values(), root / "weights")
        found = find_videos(args.video_root, args.match)
        copies = {f"{name}_{copy}": name for copy in range(args.copies) for name in found}
        names = list(copies)
        link_clips(args.video_root, root / "video", copies)
        if args.openface_root:
            link_clips(args.openface_root, root / "openface", copies)
        settings = Settings(
            dataset="benchmark",
            save_root=root / "features",
            video_root=root / "video",
            openface_root=root / "openface" if args.openface_root else None,
            au_root=root / "au_json",
            streams=STORED_MODALITIES if args.openface_root else STORED_MODALITIES[:3],
            **encoders,
            device=args.device,
            workers=args.num_workers,
            progress=False,
        )
        session = Session(settings, WRITER)
        # loads the weights and lets first calls choose kernels, so that the clock is for clips alone
        encode_alone(session, names[:1], [stream for stream in session.specs if stream != Modality.AU])
        with memory_watch(session) as memory:
            report = run_session(session, names)
        figures = figures_of(report, args) | {"memory_mb": memory_of(memory)}
        if args.compare_bare:
            bare = encode_alone(session, names, list(session.specs))
            figures["bare_encoders_s"] = round(bare, 3)
            figures["wall_over_bare_encoders"] = round(report.seconds["total"] / bare, 3)
        return figures


def use_random_weights(names: Iterable[str], folder: Path) -> None:
    """Make every named pretrained encoder load random weights of its true size."""
    from benchmarks.random_weights import save_random_weights

    for name in names:
        if name not in DEFAULTS.values():
            os.environ[f"AFFECT_{name}"] = str(save_random_weights(name, folder / name))


def find_videos(root: Path, match: str = "") -> list[str]:
    """Return the names of clips that begin so; raises ValueError where there are none."""
    found = [name for name in sorted(list_clips(root)) if name.startswith(match)]
    if not found:
        raise ValueError(f"{root}: expected videos whose names begin with {match!r}, found none")
    return found


def link_clips(source: Path, folder: Path, names: Mapping[str, str]) -> None:
    """Put links to files into a new folder; names: that of a link -> that of the clip."""
    folder.mkdir()
    for link, name in names.items():
        for path in source.glob(f"{name}.*"):
            (folder / f"{link}{path.suffix}").symlink_to(path.resolve())


def figures_of(report: RunReport, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the driver measured, in plain numbers."""
    total, clips = report.seconds["total"], report.clips
    stages = ("wait", "au_text", "encode", "write", "driver")
    return {
        "clips": clips,
        "failed": len({failure.name for failure in report.failures}),
        "encoders": [getattr(args, name) for name in DEFAULTS],
        "device": args.device,
        "workers": args.num_workers,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "total_s": round(total, 2),
        "clips_per_second": round(clips / total, 2),
        "main_process_share": {stage: round(report.seconds.get(stage, 0.0) / total, 4) for stage in stages},
        "stage_ms_per_clip": {stage: round(1000 * s / clips, 2) for stage, s in sorted(report.work_seconds.items())},
    }


def encode_alone(session: Session, names: list[str], streams: list[Modality]) -> float:
    """Return the seconds that the encoders take for clips whose arrays are already there."""
    settings, media = session.settings, tuple(stream for stream in streams if stream != Modality.AU)
    seconds = 0.0
    for start in range(0, len(names), ENCODER_BATCH):
        chunk = names[start : start + ENCODER_BATCH]
        batch = [prepare_clip(session.task(name, media)) for name in chunk]
        for stream in streams:
            if stream == Modality.AU:
                items = [sentences(read_au_json(find_au_json(settings.au_root, settings.dataset, n))) for n in chunk]
            else:
                items = [clip.items[stream] for clip in batch]
            encoder = session.encoder(stream)
            begin = time.monotonic()
            encoder(items)
            seconds += time.monotonic() - begin
    return seconds


@contextmanager
def memory_watch(session: Session, every: float = 0.2) -> Iterator[list[tuple[int, float, float]]]:
    """Note (clips done, MiB of this process, MiB of its workers) again and again while the block runs."""
    log = session.store.root / FOLDER / f"{WRITER}.jsonl"
    samples: list[tuple[int, float, float]] = []
    ended, process = threading.Event(), psutil.Process()

    def watch() -> None:
        while not ended.wait(every):
            done = log.read_bytes().count(b"\n") if log.is_file() else 0
            samples.append((done, _resident(process), sum(map(_resident, process.children()))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def memory_of(samples: list[tuple[int, float, float]]) -> dict[str, Any]:
    """Return the memory of this process and of its workers at some numbers of clips, and at most."""
    figures: dict[str, Any] = {"peak": round(max((a + b for _, a, b in samples), default=0.0))}
    for count in (200, 500, 1000, 2000, 4000):
        near = [(own, workers) for done, own, workers in samples if done >= count]
        if near:
            figures[f"at_{count}_clips"] = {"driver": round(near[0][0]), "workers": round(near[0][1])}
    return figures


def _resident(process: psutil.Process) -> float:
    """Resident memory of a process in MiB; 0 where it has ended."""
    try:
        return process.memory_info().rss / 2**20
    except psutil.Error:
        return 0.0
