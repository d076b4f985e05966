"""Check everything that training on action units rests on: AU JSON, sentences, features, and that they agree.

    python tools/verify_au_pipeline.py --cfg-path train_configs/x.yaml
    python tools/verify_au_pipeline.py --dataset mydata --mer-factory-output output/au --save_root preextracted_features

Ends with code 0 only if all is well; --json prints the findings for machines.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from affect.core.au_json import au_json_path, find_au_json, read_au_json, require_sentences
from affect.core.layouts import LAYOUTS
from affect.core.schema import STORED_MODALITIES, Modality
from affect.data.config import Config, DatasetConfig, load_config
from affect.data.manifest import read_clips
from affect.features.store import FeatureError, FeatureStore


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of one clip."""

    dataset: str
    clip: str
    check: str
    """au_json, sentences, counts, or the name of a stream."""
    ok: bool
    detail: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Check every clip of every data set and print the findings; return the exit code."""
    args = parse_arguments(arguments)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # folders without a sidecar
    config = load_config(args.cfg_path, args.options) if args.cfg_path else config_of_options(args)
    findings = []
    for name, section in config.datasets.items():
        if args.dataset in (None, name):
            streams = LAYOUTS[section.face_or_frame].needed if args.cfg_path else extracted_streams(name, section)
            findings += check_dataset(name, section, config, streams)
    if not findings:
        raise ValueError(f"no clip was checked: expected data set {args.dataset!r} in the configuration")
    failed = [finding for finding in findings if not finding.ok]
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, ensure_ascii=False))
    else:
        print_findings(findings)
    return 1 if failed else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cfg-path", help="train config whose data sets, encoders and dimensions must agree with what is there")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE")
    add("--dataset", help="one data set; without --cfg-path it is required")
    add("--csv_path", help="table of clips; without it every AU JSON or feature found is checked")
    add("--csv_column", default="name")
    add("--mer-factory-output", "--mer_factory_output")
    add("--save_root", default="preextracted_features")
    add("--visual_encoder", default="CLIP_VIT_LARGE")
    add("--acoustic_encoder", default="HUBERT_LARGE")
    add("--au_encoder", default="CLIP_VITB32")
    add("--frame_sampling", default="uniform", choices=["uniform", "headtail", "emotion_peak"])
    add("--frame_n_frms", type=int, default=8)
    add("--json", action="store_true", help="print findings as one JSON object")
    args = parser.parse_args(arguments)
    if not args.cfg_path and not args.dataset:
        parser.error("expected --cfg-path, or --dataset with --save_root")
    return args


def config_of_options(args: argparse.Namespace) -> Config:
    """Return a configuration for checking without a train config; dimensions are those of the sidecars."""
    config = Config()
    config.datasets[args.dataset] = DatasetConfig(
        csv_path=args.csv_path,
        csv_column=args.csv_column,
        preextracted_root=args.save_root,
        mer_factory_output=args.mer_factory_output,
        visual_encoder=args.visual_encoder,
        acoustic_encoder=args.acoustic_encoder,
        au_encoder=args.au_encoder,
        frame_sampling=args.frame_sampling,
        frame_n_frms=args.frame_n_frms,
    )
    store = FeatureStore(Path(args.save_root), args.dataset)
    for stream in STORED_MODALITIES:
        sidecar = store.provenance(config.datasets[args.dataset].spec(stream, 1))
        if sidecar and "dim" in sidecar:
            key = {Modality.AUDIO: "acoustic", Modality.AU: "au"}.get(stream, "visual")
            setattr(config.model, f"preextracted_{key}_dim", sidecar["dim"])
    return config


def extracted_streams(dataset: str, section: DatasetConfig) -> tuple[Modality, ...]:
    """Return the streams to check without a train config: action units, and what has a folder."""
    store = FeatureStore(Path(section.preextracted_root), dataset)
    found = [stream for stream in STORED_MODALITIES if store.has_folder(section.spec(stream, 1))]
    return tuple(dict.fromkeys([*found, Modality.AU]))


def check_dataset(dataset: str, section: DatasetConfig, config: Config, streams: tuple[Modality, ...]) -> list[Finding]:
    """Check the given streams of every clip of a data set."""
    store = FeatureStore(Path(section.preextracted_root), dataset)
    au_root = Path(section.mer_factory_output or Path(section.preextracted_root) / "au_json")
    findings = []
    for name in clip_names(dataset, section, store, au_root):
        findings += check_clip(name, dataset, section, config, store, au_root, streams)
    return findings


def clip_names(dataset: str, section: DatasetConfig, store: FeatureStore, au_root: Path) -> list[str]:
    """Return the clips of the table, or without one every clip of which anything is there."""
    if section.csv_path:
        return [clip.name for clip in read_clips(dataset, section)]
    names = store.names()
    # with the data set's folder between root and clips, or without
    folder = au_json_path(au_root, dataset, "any").parent.parent
    folder = folder if folder.is_dir() else au_root
    names |= {path.parent.name for path in folder.glob("*/*_au_analysis.json")}
    if not names:
        raise ValueError(f"{store.root} and {au_root}: expected features or AU JSON of {dataset}, found neither")
    return sorted(names)


def check_clip(
    name: str,
    dataset: str,
    section: DatasetConfig,
    config: Config,
    store: FeatureStore,
    au_root: Path,
    streams: tuple[Modality, ...],
) -> list[Finding]:
    """Check AU JSON, sentences, every stream's features and that sentences and AU rows agree in number."""
    findings, rows = [], {}
    sentences = None

    def note(check: str, fault: object = "") -> None:
        findings.append(Finding(dataset, name, check, ok=not fault, detail=" ".join(str(fault).split())))

    if Modality.AU in streams:
        try:
            path = find_au_json(au_root, dataset, name)
            analysis = read_au_json(path)
            note("au_json")
            sentences = require_sentences(analysis, path)
            note("sentences")
        except (ValueError, OSError) as error:
            note("sentences" if findings else "au_json", error)
    for stream in streams:
        try:
            rows[stream] = len(store.read(section.spec(stream, config.model.feature_dim(stream)), name))
            note(stream)
        except FeatureError as error:
            note(stream, error)
    if sentences is not None and Modality.AU in rows:
        agree = len(sentences) == rows[Modality.AU]
        note(
            "counts", "" if agree else f"expected one AU row a sentence, found {rows[Modality.AU]} and {len(sentences)}"
        )
    return findings


def print_findings(findings: list[Finding]) -> None:
    """Print a table of checks and the first faults."""
    console = Console()
    table = Table(title="AU pipeline")
    for column in ("data set", "check", "ok", "failed"):
        table.add_column(column, justify="right" if column in ("ok", "failed") else "left")
    counts = Counter((finding.dataset, finding.check, finding.ok) for finding in findings)
    for dataset, check in dict.fromkeys((finding.dataset, finding.check) for finding in findings):
        table.add_row(dataset, check, str(counts[dataset, check, True]), str(counts[dataset, check, False]))
    console.print(table)
    failed = [finding for finding in findings if not finding.ok]
    for finding in failed[:20]:
        console.print(f"{finding.clip}: {finding.check}: {finding.detail}", markup=False, highlight=False)
    clips = len({(finding.dataset, finding.clip) for finding in findings})
    bad = len({(finding.dataset, finding.clip) for finding in failed})
    console.print(
        f"{clips} clips, {bad} with faults" + (f", first 20 of {len(failed)} shown" if len(failed) > 20 else "")
    )
