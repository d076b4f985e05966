"""Raw clips to features: AU JSON, AU sentences and arrays, whatever is still missing.

    python tools/extract_features.py --dataset mydata --modality all --video_root clips \\
        --openface_root openface --mer-factory-output output/au --save_root preextracted_features

Without --csv_path every video in --video_root is a clip, or without that every sound file in --audio_root.
Ends with code 1 when a clip failed; which and why is in {save_root}/{dataset}/failures.csv. Give the same
command again after a stop, even a kill: what is there is not made again. Several workers share a
store by --num-shards and --shard-index.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from affect.cli import add_offline
from affect.core.failures import failure_lines
from affect.core.schema import STORED_MODALITIES, Modality, check_name
from extractors.run.session import (
    AU_BACKENDS,
    AUDIO_SUFFIXES,
    GEOMETRIES,
    PRECISIONS,
    STAGES,
    TEMPLATES,
    VIDEO_SUFFIXES,
    Session,
    Settings,
    check_backend,
    known_au_json,
    list_clips,
)

if TYPE_CHECKING:  # --help opens at once
    from extractors.run.journal import RunReport

FAILURE_TABLE = "failures.csv"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the plan, print what became of the clips; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    check_installed(args)
    if args.devices:
        return run_on_devices(args, arguments)
    settings = settings_of(args)
    names = clip_names(args)
    streams = ", ".join(settings.features or settings.stages)
    print(f"{args.dataset}: {len(names)} clips, {streams}", flush=True)

    if settings.visual_encoder.startswith("fer:") and settings.device == "cpu":
        from affect.core.device import keep_freed_memory

        keep_freed_memory()
    from extractors.run.driver import run, sum_up
    from extractors.run.planning import shard

    names = shard(names, args.shard_index, args.num_shards)
    session = Session(settings, writer=f"{args.shard_index}of{args.num_shards}")
    tell_other_backend(session, names)
    tell_sourceless(settings, names)
    if args.engine == "ray":
        from extractors.run.ray_engine import run_on_ray

        # the pool draws no bars: Ray shows its own
        report = run_on_ray(replace(settings, progress=False), names, args.actors)
        sum_up(session, names, report)
    else:
        report = run(session, names)
    print_summary(session, report)
    return 1 if report.failures or report.stopped else 0


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the command line's settings, checked as far as they can be without touching clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", required=True, help="name of the data set, and of its folder below --save_root")
    known = ",".join(STORED_MODALITIES)
    add("--modality", dest="streams", type=_some_of(STORED_MODALITIES), default="all", help=f"of {known}; default: all")
    add("--stages", type=_some_of(STAGES), default="all", help=f"of {','.join(STAGES)}; default: all, where missing")
    add("--csv_path", type=Path, help="table with one row a clip; default: every file of --video_root or --audio_root")
    add("--csv_column", default="name", help="column with clip names")
    add("--video_root", type=Path)
    add("--audio_root", type=Path, help="sound files; default: the sound of the videos")
    add_clip_flags(parser)
    add(
        "--mer-factory-output",
        "--mer_factory_output",
        dest="au_root",
        type=Path,
        help="root of the AU JSON files; default: {save_root}/au_json",
    )
    add("--save_root", type=Path, default=Path("preextracted_features"))
    add(
        "--visual_encoder",
        default="CLIP_VIT_LARGE",
        help="CLIP_VIT_LARGE, SIGLIP_SO, DINO2_LARGE, hf:<folder or hub id>, open_clip:<name>/<weights>, "
        "fer:<run of the image track>, or DCT (needs no weights)",
    )
    add(
        "--acoustic_encoder",
        default="HUBERT_LARGE",
        help="HUBERT_LARGE, WAVLM_LARGE, DATA2VEC_BASE, hf:<folder or hub id>, or PROSODY (needs no weights)",
    )
    add(
        "--au_encoder",
        default="CLIP_VITB32",
        help="of sentences: CLIP_VITB32, open_clip:<name>/<weights>, hf:<folder or hub id>, or HASHED_NGRAMS (needs no "
        "weights); of what was measured: AU_VALUES",
    )
    add("--au_maker", default=TEMPLATES, help="templates, or a language model's folder or hub id")
    add("--au_adapter", help="PEFT adapter of that language model")
    add("--au_agent_backend", default="hf", choices=["hf", "vllm"], help="what runs that language model")
    add("--frame_n_frms", dest="frame_count", type=_positive, default=8)
    add("--clips_per_video", type=_positive, default=8, help="sound clips of 2 s")
    add("--dtype", default="float32", choices=["float32", "float16"], help="numbers that features are stored in")
    _add_run_flags(parser)
    add_offline(parser)
    args = parser.parse_args(arguments)
    check_name(args.dataset, "--dataset")
    args.au_root = args.au_root or args.save_root / "au_json"
    if args.devices and args.engine == "ray":
        parser.error("--devices names devices of this machine, but with --engine ray the cluster chooses; drop one")
    return args


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that say how any one clip is read, which `inference.py --video` has too."""
    add = parser.add_argument
    add("--face_root", type=Path, help="face arrays {name}.npy or {name}/{name}.npy; default: found in the videos")
    add("--face_finder", default="auto", choices=["auto", "opencv", "mediapipe"])
    add("--frame_sampling", dest="sampling", default="uniform", choices=["uniform", "headtail", "emotion_peak"])
    add("--frame_geometry", choices=GEOMETRIES, help="of whole frames to 224 x 224, or what the encoder cuts of them")
    add("--precision", choices=PRECISIONS, help="of encoders with weights; default: as a folder began, or the device's")
    add("--openface_root", type=Path, help="OpenFace tables {name}.csv; new ones are put there")
    executable = os.environ.get("OPENFACE_EXECUTABLE") or None
    add("--openface_executable", default=executable, help="FeatureExtraction binary; default: OPENFACE_EXECUTABLE")
    help_on_args = 'passed on to it, e.g. "-mloc model/main_ceclm_general.txt"'
    add("--openface_args", type=lambda text: tuple(text.split()), default=(), help=help_on_args)
    add("--au_backend", default="openface", choices=AU_BACKENDS, help="what measures action units")
    add("--allow_mismatch", action="store_true", help="take AU tables and JSON whose frames are not the video's")


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="cpu", help="where encoders and language model run, e.g. cuda:0")
    add("--devices", type=_devices, default=(), help="several, e.g. cuda:0,cuda:1: a process and a shard for each")
    add("--num_workers", dest="workers", type=_positive, default=2, help="processes that decode clips, for each device")
    add("--time_limit", type=_seconds, default=60.0, help="seconds that measuring and decoding one clip may take")
    add("--num-shards", "--num_shards", type=_positive, default=1, help="parts that the clips are divided into")
    add("--shard-index", "--shard_index", type=int, default=0, help="which of them to do, from 0")
    add("--engine", default="local", choices=["local", "ray"], help="ray: a pool of actors on a Ray cluster")
    add("--actors", type=_positive, help="size of that pool; default: what the cluster has room for")
    add("--overwrite", action="store_true", help="make anew what is there")
    add("--retry-failed", "--retry_failed", action="store_true", help="try unchanged clips again that failed before")
    add("--no-progress", "--no_progress", dest="progress", action="store_false", help="draw no progress bar")


def check_installed(args: argparse.Namespace) -> None:
    """Raise ModuleNotFoundError where face finder or AU backend is asked for and absent."""
    from affect.faces.finders import face_finder_name

    face_finder_name(args.face_finder)
    check_backend(args.au_backend)


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the command line's settings; a flag's value is kept under the name that the stages use."""
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


def clip_names(args: argparse.Namespace) -> list[str]:
    """Return the clips to work on, each once (raises ValueError when there are none)."""
    if args.csv_path is None:
        root, suffixes = (args.video_root, VIDEO_SUFFIXES) if args.video_root else (args.audio_root, AUDIO_SUFFIXES)
        if root is None:
            raise ValueError("no clips are named: expected --csv_path with a table, --video_root or --audio_root")
        names = sorted(list_clips(root, suffixes))
        if not names:
            raise ValueError(f"{root}: expected a folder with clips ({', '.join(suffixes)}), found none")
        return names
    from affect.data.tables import read_table

    table = read_table(args.csv_path, args.csv_column, advice="see --csv_column")
    return list(dict.fromkeys(table[args.csv_column]))


def run_on_devices(args: argparse.Namespace, arguments: list[str]) -> int:
    """Run this script once for each device, each on a shard of its own; return the worst exit code."""
    processes = []
    for i, (name, environment) in enumerate([only_device(device) for device in args.devices]):
        index, count = args.shard_index * len(args.devices) + i, args.num_shards * len(args.devices)
        own = ["--devices", "", "--device", name, "--num-shards", str(count), "--shard-index", str(index)]
        quiet = ["--no-progress"] if i else []  # two bars would draw over each other
        processes.append(
            subprocess.Popen([sys.executable, "-m", "affect", "extract", *arguments, *own, *quiet], env=environment)
        )
    try:
        return max(abs(process.wait()) for process in processes)
    except KeyboardInterrupt:  # which the processes got too; they write down what they have
        return max(abs(process.wait()) for process in processes)


def only_device(device: str) -> tuple[str, dict[str, str]]:
    """Return what a process that is to see one device only calls it, and the environment that it needs.

    vLLM takes no other way of choosing a GPU.
    """
    environment = dict(os.environ)
    if not device.startswith("cuda:"):
        return device, environment
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = device.removeprefix("cuda:")
    known = visible.split(",") if visible else None
    if not number.isdecimal() or (known and int(number) >= len(known)):
        raise ValueError(
            f"--devices: {device} does not exist (CUDA_VISIBLE_DEVICES is {visible or 'not set'}); expected cuda:0 and "
            "so on, as many as this process may use"
        )
    environment["CUDA_VISIBLE_DEVICES"] = known[int(number)] if known else number
    return "cuda:0", environment


def tell_other_backend(session: Session, names: list[str]) -> None:
    """Say what --overwrite would measure anew where a data set's action units are by another backend than asked for."""
    settings, found = session.settings, session.measured_by if session.settings.measures else None
    if found in (None, settings.au_backend) or settings.overwrite or not settings.wants_au:
        return
    known = sum(known_au_json(settings, name) is not None for name in names)
    print(
        f"action units are by {found}: {known} AU JSON are read as they are, which --overwrite would measure anew by "
        f"{settings.au_backend}; {len(names) - known} clips without one fail unless --au_backend is {found}"
    )


def tell_sourceless(settings: Settings, names: list[str]) -> None:
    """Say which of the streams asked for no clip has files for, and how to ask for the others alone."""
    videos, sounds = (
        root is not None and not list_clips(root, suffixes).keys().isdisjoint(names)
        for root, suffixes in ((settings.video_root, VIDEO_SUFFIXES), (settings.audio_root, AUDIO_SUFFIXES))
    )
    measured = settings.measures and (
        settings.openface_root or (videos and (settings.openface_executable or settings.au_backend != "openface"))
    )
    there = {
        Modality.FRAME: videos,
        Modality.FACE: videos or settings.face_root,
        Modality.AUDIO: videos or sounds,
        Modality.AU: measured or any(known_au_json(settings, name) for name in names),
    }
    flags = {
        Modality.FRAME: "--video_root",
        Modality.FACE: "--video_root or --face_root",
        Modality.AUDIO: "--video_root or --audio_root",
        Modality.AU: "--openface_root, --mer-factory-output or another --au_backend",
    }
    lacking = [f"{stream} ({flags[stream]})" for stream in settings.features if not there[stream]]
    others = [stream for stream in settings.features if there[stream]]
    if lacking:
        rest = f"; ask for the rest alone with --modality {','.join(others)}" if others else ""
        print(f"no clip has a source of {', '.join(lacking)}{rest}")


def print_summary(session: Session, report: RunReport) -> None:
    """Print what was made, what was there, which clips have no face or sound, what failed, and where time went."""
    table = Table(title=f"{session.settings.dataset}: {report.clips} clips", show_header=False)
    for what in ("au_json", "au_text", *map(str, session.settings.features)):
        table.add_row(f"{what} made", str(report.made[what]))
    table.add_row("complete before", str(report.complete))
    table.add_row("without a face", _some(report.faceless))
    table.add_row("without sound", _some(report.silent))
    failed = list(dict.fromkeys(failure.name for failure in report.failures))
    table.add_row("failed", _some(failed))
    if report.seconds:
        total = report.seconds["total"]
        parts = ", ".join(
            f"{stage} {report.seconds.get(stage, 0.0) / total:.0%}"
            for stage in ("wait", "au_text", "encode", "write", "driver")
        )
        table.add_row("time", f"{total:.1f} s: {parts}")
    console, root = Console(), session.store.root
    console.print(table)
    places = [f"features: {root}", f"AU JSON: {session.settings.au_root}"]
    failures = [*failure_lines(report.failures), f"all failures: {root / FAILURE_TABLE}"] if report.failures else []
    for line in (*places, *failures):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if report.left_alone:
        console.print(f"{report.left_alone} of these clips failed before and have not changed since: --retry-failed")
    if report.stopped:
        console.print(f"stopped: {report.stopped}", markup=False, highlight=False)


def _some(names: list[str]) -> str:
    """Return how many there are, and the first ones."""
    return escape(f"{len(names)}" + (f" ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else ""))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, found {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, found {text!r}")
    return seconds


def _devices(text: str) -> tuple[str, ...]:
    return tuple(device.strip() for device in text.split(",") if device.strip())


def _some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def chosen(text: str) -> tuple[str, ...]:
        asked = known if text == "all" else text.split(",")
        if unknown := [each for each in asked if each not in known]:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, found {', '.join(unknown)}")
        return tuple(each for each in known if each in asked)

    return chosen
