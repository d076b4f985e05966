"""The whole chain on one command, on a machine without weights, GPU or network.

    python -m examples.demo         (make demo)

Makes clips of drawn, talking faces (real mp4, wav and OpenFace-format files), runs every stage on
them through the scripts that users call, trains on some people, answers for others, and writes
{root}/report.md. What is finished is kept; --fresh begins anew.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

# torch and its kin are imported where they are used: each worker process imports this file anew
from affect.cli import extract as extract_features
from affect.cli import verify as verify_au_pipeline
from affect.data.prompts import load_prompts
from examples.demo.clips import make_clips
from examples.demo.text import language_corpus, reasoning

logger = logging.getLogger("demo")

REPOSITORY = Path(__file__).resolve().parents[2]

LAYOUTS = {
    "fused": "multiface_audio_face_frame_au_text",
    "face": "faceonly",
    "audio": "audioonly",
    "AU": "auonly",
    "text": "textonly",
}
"""Comparison -> what its model is shown."""

WITHOUT = {
    "sound": ["audio"],
    "face_pictures": ["face", "frame"],
    "action_units": ["au"],
    "face_and_action_units": ["face", "frame", "au"],
}
"""What is taken from the fused model's clips at test time, to see how well it answers from the rest."""

DATA_SEED, CLIPS, LANGUAGE_TEXTS = 0, 240, 4000


@dataclass(frozen=True)
class Run:
    """One model: what it is shown and the seed it is trained with."""

    inputs: str
    seed: int
    root: Path

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.inputs}_seed{self.seed}"

    @property
    def options(self) -> list[str]:
        """Settings that make the demo's configuration this run's."""
        return [
            f"datasets.demo.face_or_frame={LAYOUTS[self.inputs]}",
            f"datasets.demo.csv_path={self.root / 'clips.csv'}",
            f"datasets.demo.preextracted_root={self.root / 'features'}",
            f"datasets.demo.mer_factory_output={self.root / 'au_json'}",
        ]


def main(arguments: list[str] | None = None) -> Path:
    """Run the chain from clips to report and return the report's path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("output/demo"), help="folder for everything that is made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="training seeds")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("affect").setLevel(logging.WARNING)
    if args.fresh:
        shutil.rmtree(args.root, ignore_errors=True)
    seconds: dict[str, float] = {}

    def stage(name: str, step, *values):
        logger.info("\n== %s", name)
        start = time.monotonic()
        result = step(*values)
        seconds[name] = time.monotonic() - start
        return result

    with workers(1, args.root) as pool:
        language = pool.submit(teach, args.root / "language_model")  # needs no clips, so it goes on beside them
        stage("clips", prepare_clips, args.root)
        stage("features", extract, args.root)
        stage("language model", language.result)
    runs = [Run(inputs, seed, args.root) for seed in args.seeds for inputs in LAYOUTS]
    stage("training and answers", train_and_answer, runs)
    from examples.demo.report import write_report

    report = stage("report", write_report, args.root, args.seeds, list(LAYOUTS), list(WITHOUT), seconds)
    logger.info("\nreport: %s", report)
    return report


def prepare_clips(root: Path) -> None:
    """Make the clips and their table with a reasoning text for each."""
    table = root / "clips.csv"
    if table.is_file():
        return
    clips = pd.read_csv(make_clips(root / "clips", DATA_SEED, CLIPS), dtype=str)
    rng = random.Random(DATA_SEED)
    clips["reason"] = [reasoning(row.face, row.voice, row.emotion, rng) for row in clips.itertuples()]
    clips.to_csv(table, index=False)


def extract(root: Path) -> None:
    """Run the extraction script on the clips and check what it made (raises RuntimeError when that is not well)."""
    arguments = ["--dataset=demo", "--modality=all", f"--csv_path={root / 'clips.csv'}"]
    arguments += [f"--{kind}_root={root / 'clips' / kind}" for kind in ("video", "audio", "openface")]
    arguments += [f"--mer-factory-output={root / 'au_json'}", f"--save_root={root / 'features'}"]
    arguments += ["--visual_encoder=DCT", "--acoustic_encoder=PROSODY", "--au_encoder=HASHED_NGRAMS"]
    if extract_features.main(arguments):
        raise RuntimeError(f"some clips failed: see {root / 'features' / 'demo' / 'failures.csv'}")
    config = ["--cfg-path", str(REPOSITORY / "train_configs/demo.yaml")]
    if verify_au_pipeline.main([*config, "--options", *Run("fused", 0, root).options]):
        raise RuntimeError("the features do not fit the configuration: see the table above")


def teach(folder: Path) -> None:
    """Train the small language model on text in which cues and emotions are paired at random."""
    from examples.demo.language_model import make_language_model

    make_language_model(folder, language_corpus(LANGUAGE_TEXTS, DATA_SEED, load_prompts(), list(LAYOUTS.values())))


def workers(count: int, root: Path) -> ProcessPoolExecutor:
    """Return processes of one thread each, the quick way for small models; what they print goes to files."""
    # glibc gives memory of large arrays back at once, and getting it anew takes longer than filling it
    keep = dict.fromkeys(["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"], str(2**30))
    os.environ.update(keep, OMP_NUM_THREADS="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=start_worker, initargs=(root,))


def train_and_answer(runs: list[Run]) -> None:
    """Train and query the models two at a time."""
    with workers(2, runs[0].root) as pool:
        # the fused runs take longest, so they go first
        futures = {pool.submit(carry_out, run): run for run in sorted(runs, key=lambda run: run.inputs != "fused")}
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            logger.info("%d of %d models done: %s", done, len(runs), futures[future].name)


def start_worker(root: Path) -> None:
    """Make train.py and inference.py importable and send what a process prints to a file of its own."""
    sys.path.insert(0, str(REPOSITORY))
    (root / "runs").mkdir(parents=True, exist_ok=True)
    sys.stdout = (root / "runs" / f"log_{os.getpid()}.txt").open("a", encoding="utf-8", buffering=1)


def carry_out(run: Run) -> None:
    """Train one model and let it answer for the held-out people."""
    from affect.cli import answer as inference
    from affect.cli import train

    folder = run.root / "runs" / run.name
    settings = [*run.options, f"run.seed={run.seed}", f"run.output_dir={folder}"]
    settings.append(f"model.llama_model={run.root / 'language_model'}")
    settings.append(f"run.visualize_training={run.inputs == 'fused'}")
    train.main(["--cfg-path", str(REPOSITORY / "train_configs/demo.yaml"), "--options", *settings])
    for missing, without in ({"nothing": []} | (WITHOUT if run.inputs == "fused" else {})).items():
        answers = run.root / "answers" / f"without_{missing}"
        query = [*run.options, f"inference.base_root={answers}", f"inference.without={without}"]
        config = str(REPOSITORY / "eval_configs/demo.yaml")
        if inference.main(["--cfg-path", config, "--ckpt", str(folder), "--show", "0", "--options", *query]):
            raise RuntimeError(f"{run.name}: some clips could not be answered, see {answers}-failures.csv")
