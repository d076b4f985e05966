"""Raw clips to features: AU JSON, AU sentences and arrays, whatever is still missing.

    python tools/extract_features.py --dataset mydata --modality all --video_root clips \\
        --openface_root openface --mer-factory-output output/au --save_root preextracted_features

Without --csv_path every video in --video_root is a clip. Ends with code 1 when a clip failed; which
and why is in {save_root}/{dataset}/failures.csv.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from affect.data.manifest import read_table
from affect.schema import STORED_MODALITIES, Modality, check_name
from affect.store import FeatureSpec, FeatureStore
from extractors.au_text import describe_clip
from extractors.clip import Describe, Sources
from extractors.encoders import Encoder, build_encoder
from extractors.faces import face_finder_name
from extractors.media import list_videos
from extractors.openface import EXECUTABLE_VARIABLE
from extractors.pipeline import FAILURE_TABLE, STAGES, Plan, RunReport, run

TEMPLATES = "templates"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the plan, print what became of the clips; return the exit code."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    streams = STORED_MODALITIES if args.modality == "all" else (Modality(args.modality),)
    encoders = {stream: load_encoder(args, stream) for stream in streams} if "features" in args.stages else {}
    plan = Plan(
        dataset=args.dataset,
        names=clip_names(args),
        sources=Sources(
            video_root=args.video_root,
            audio_root=args.audio_root,
            face_root=args.face_root,
            openface_root=args.openface_root,
            openface_executable=args.openface_executable or os.environ.get(EXECUTABLE_VARIABLE),
            openface_args=tuple(args.openface_args.split()),
            au_root=args.mer_factory_output,
        ),
        store=FeatureStore(args.save_root, args.dataset),
        specs={stream: feature_spec(args, stream, encoder.dim) for stream, encoder in encoders.items()},
        stages=args.stages,
        sampling=args.frame_sampling,
        frame_count=args.frame_n_frms,
        face_finder=args.face_finder,
        workers=args.num_workers,
        time_limit=args.time_limit,
        overwrite=args.overwrite,
    )
    report = run(plan, sentence_maker(args), encoders.__getitem__)
    print_summary(plan, report)
    return 1 if report.failures else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's settings, checked as far as they can be without touching clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", required=True, help="name of the data set, and of its folder below --save_root")
    add("--modality", default="all", choices=[*STORED_MODALITIES, "all"])
    add("--stages", type=_stages, default=STAGES, help=f"of {','.join(STAGES)}; default: all, where missing")
    add("--csv_path", type=Path, help="table with one row a clip; default: every video in --video_root")
    add("--csv_column", default="name", help="column with clip names")
    add("--video_root", type=Path)
    add("--audio_root", type=Path, help="sound files; default: the sound of the videos")
    add("--face_root", type=Path, help="face arrays {name}.npy or {name}/{name}.npy; default: found in the videos")
    add("--openface_root", type=Path, help="OpenFace tables {name}.csv; new ones are put there")
    add("--openface_executable", help=f"FeatureExtraction binary; default: {EXECUTABLE_VARIABLE}")
    add("--openface_args", default="", help='passed on to it, e.g. "-mloc model/main_ceclm_general.txt"')
    add(
        "--mer-factory-output",
        "--mer_factory_output",
        type=Path,
        help="root of the AU JSON files; default: {save_root}/au_json",
    )
    add("--save_root", type=Path, default=Path("preextracted_features"))
    add("--visual_encoder", default="CLIP_VIT_LARGE", help="CLIP_VIT_LARGE, or DCT (needs no weights)")
    add("--acoustic_encoder", default="HUBERT_LARGE", help="HUBERT_LARGE, or PROSODY (needs no weights)")
    add("--au_encoder", default="CLIP_VITB32", help="CLIP_VITB32, or HASHED_NGRAMS (needs no weights)")
    add("--au_maker", default=TEMPLATES, help="templates, or a language model's folder or hub id")
    add("--au_adapter", help="PEFT adapter of that language model")
    add("--frame_sampling", default="uniform", choices=["uniform", "headtail", "emotion_peak"])
    add("--frame_n_frms", type=_positive, default=8)
    add("--clips_per_video", type=_positive, default=8, help="sound clips of 2 s")
    add("--face_finder", default="auto", choices=["auto", "opencv", "mediapipe"])
    add("--device", default="cpu", help="where encoders and language model run, e.g. cuda:0")
    add("--num_workers", type=_positive, default=2, help="processes that decode clips")
    add("--time_limit", type=float, default=60.0, help="seconds that decoding one clip may take")
    add("--overwrite", action="store_true", help="make anew what is there")
    args = parser.parse_args(arguments)
    check_name(args.dataset, "--dataset")
    face_finder_name(args.face_finder)
    args.mer_factory_output = args.mer_factory_output or args.save_root / "au_json"
    return args


def clip_names(args: argparse.Namespace) -> list[str]:
    """Return the clips to work on (raises ValueError when there are none)."""
    if args.csv_path is None:
        if args.video_root is None:
            raise ValueError("no clips are named: expected --csv_path with a table, or --video_root with videos")
        return list_videos(args.video_root)
    table = read_table(args.csv_path)
    if args.csv_column not in table:
        raise ValueError(
            f"{args.csv_path}: expected a column {args.csv_column!r}, found {', '.join(table)}; see --csv_column"
        )
    return list(dict.fromkeys(table[args.csv_column]))


def load_encoder(args: argparse.Namespace, stream: Modality) -> Encoder:
    """Return the encoder that the command line names for a stream; frames and faces share one."""
    name = {Modality.AUDIO: args.acoustic_encoder, Modality.AU: args.au_encoder}.get(stream, args.visual_encoder)
    return _build(Modality.FACE if stream == Modality.FRAME else stream, name, args.device)


@cache
def _build(stream: Modality, name: str, device: str) -> Encoder:
    return build_encoder(stream, name, device)


def feature_spec(args: argparse.Namespace, stream: Modality, dim: int) -> FeatureSpec:
    """Return where the features of a stream go."""
    encoder = {Modality.AUDIO: args.acoustic_encoder, Modality.AU: args.au_encoder}.get(stream, args.visual_encoder)
    if stream == Modality.FRAME:
        return FeatureSpec(stream, encoder, dim, args.frame_n_frms, args.frame_sampling)
    return FeatureSpec(stream, encoder, dim, args.clips_per_video if stream == Modality.AUDIO else 8)


def sentence_maker(args: argparse.Namespace) -> Describe:
    """Return the maker of AU sentences."""
    if args.au_maker == TEMPLATES or "au_text" not in args.stages:
        return describe_clip

    from extractors.au_agent import AuAgent

    return AuAgent(args.au_maker, args.au_adapter, args.device).describe_clip


def print_summary(plan: Plan, report: RunReport) -> None:
    """Print what was made, what was there, which clips have no face or sound, and what failed."""
    table = Table(title=f"{plan.dataset}: {len(plan.names)} clips", show_header=False)
    for what in ("au_text", *map(str, plan.specs)):
        table.add_row(f"{what} made", str(sum(what in clip.made for clip in report.clips.values())))
    faceless = [name for name, clip in report.clips.items() if clip.faceless]
    table.add_row(
        "without a face", escape(f"{len(faceless)} {'(' + ', '.join(faceless[:5]) + ')' if faceless else ''}")
    )
    table.add_row("failed", str(len({name for name, _, _ in report.failures})))
    console = Console()
    console.print(table)
    if report.failures:
        console.print(f"see {plan.store.root / FAILURE_TABLE}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, found {text!r}")
    return int(text)


def _stages(text: str) -> tuple[str, ...]:
    stages = tuple(text.split(","))
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(STAGES)}, found {', '.join(unknown)}")
    return stages


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
