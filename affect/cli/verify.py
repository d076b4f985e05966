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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from affect.core.failures import Failure, failure_lines
from affect.core.schema import STORED_MODALITIES, Modality
from affect.features.store import ENCODERS, FeatureStore

if TYPE_CHECKING:  # imported when it is known that there is something to check
    from affect.data.au_check import Finding
    from affect.data.config import Config, DatasetConfig


def main(arguments: list[str] | None = None) -> int:
    """Check every clip of every data set and print the findings; return the exit code."""
    args = parse_arguments(arguments)
    from affect.data.au_check import check_dataset
    from affect.data.config import load_config

    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # folders without a sidecar
    config = load_config(args.cfg_path, args.options) if args.cfg_path else config_of_options(args)
    findings: list[Finding] = []
    for name, section in config.datasets.items():
        if args.dataset in (None, name):
            streams = section.layout.needed if args.cfg_path else extracted_streams(name, section)
            findings += check_dataset(name, section, config.model, streams)
    if not findings:
        raise ValueError(f"no clip was checked: expected data set {args.dataset!r} in the configuration")
    failed = [finding for finding in findings if not finding.ok]
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, ensure_ascii=False))
    else:
        print_findings(findings, failed)
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
    from affect.data.config import Config, DatasetConfig

    given = {key: value for key, value in vars(args).items() if key in DatasetConfig.model_fields}
    config = Config()
    config.datasets[args.dataset] = DatasetConfig(preextracted_root=args.save_root, **given)
    store = FeatureStore(Path(args.save_root), args.dataset)
    for stream in STORED_MODALITIES:
        sidecar = store.provenance(config.datasets[args.dataset].spec(stream, 1))
        if sidecar and "dim" in sidecar:
            setattr(config.model, f"preextracted_{ENCODERS.get(stream, 'visual')}_dim", sidecar["dim"])
    return config


def extracted_streams(dataset: str, section: DatasetConfig) -> tuple[Modality, ...]:
    """Return the streams to check without a train config: action units, and what has a folder."""
    store = FeatureStore(Path(section.preextracted_root), dataset)
    found = [stream for stream in STORED_MODALITIES if store.has_folder(section.spec(stream, 1))]
    return tuple(dict.fromkeys([*found, Modality.AU]))


def print_findings(findings: Sequence[Finding], failed: Sequence[Finding]) -> None:
    """Print a table of checks and the first faults."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("data set", "check", title="AU pipeline")
    table.add_column("ok", justify="right")
    table.add_column("failed", justify="right")
    counts = Counter((finding.dataset, finding.check, finding.ok) for finding in findings)
    for dataset, check in dict.fromkeys((finding.dataset, finding.check) for finding in findings):
        table.add_row(dataset, check, str(counts[dataset, check, True]), str(counts[dataset, check, False]))
    console.print(table)
    for line in failure_lines(Failure(finding.clip, finding.check, finding.detail) for finding in failed):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    clips, bad = (len({(finding.dataset, finding.clip) for finding in some}) for some in (findings, failed))
    console.print(f"{clips} clips, {bad} with faults" + ("; --json prints each" if failed else ""))
