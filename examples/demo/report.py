"""The demo's report: accuracies, baselines, curves and sample answers with a frame and the action units."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from affect.core.plots import draw_confusion, new_figure, save_figure
from affect.core.schema import STORED_MODALITIES
from affect.data.config import load_config
from affect.evaluate.answers import conclusion
from affect.evaluate.classification import classification_scores, confusion
from affect.evaluate.grounding import ground_answers
from affect.evaluate.results import read_records
from affect.features.store import FeatureStore
from examples.demo.clips import EMOTIONS
from extractors.au.openface import read_openface
from extractors.media.decode import read_video

SAMPLES = 5
LABELS = list(EMOTIONS)


@dataclass(frozen=True)
class Answers:
    """What one model answered for the held-out clips."""

    records: list[dict[str, Any]]
    """Answers as inference.py writes them."""

    @property
    def texts(self) -> dict[str, str]:
        """Clip -> answer."""
        return {record["name"]: record["answer"] for record in self.records}

    @property
    def truth(self) -> dict[str, str]:
        """Clip -> emotion."""
        return {record["name"]: record["labels"][0] for record in self.records}

    @property
    def counts(self) -> np.ndarray:
        """Confusion [6, 7] of true emotions with those that the answers end on."""
        found = [conclusion(record["answer"], LABELS) for record in self.records]
        return confusion(list(self.truth.values()), found, LABELS)

    @property
    def accuracy(self) -> float:
        """Share of clips whose answer ends on the right emotion."""
        return classification_scores(self.counts).means["acc"]


def write_report(root: Path, seeds: list[int], inputs: list[str], removals: list[str], took: dict[str, float]) -> Path:
    """Write report.md and its pictures into `root` and return its path; took: stage -> seconds."""
    fused = [read_answers(root, f"fused_seed{seed}") for seed in seeds]
    without = {what: [read_answers(root, f"fused_seed{seed}", what) for seed in seeds] for what in removals}
    scores = {name: [read_answers(root, f"{name}_seed{seed}").accuracy for seed in seeds] for name in inputs}
    answers, each_seed = fused[0], [f"seed {seed}" for seed in seeds]
    draw_confusion(root / "confusion.png", answers.counts, LABELS, "fused, held-out people")
    curves = sorted((root / "runs" / f"fused_seed{seeds[0]}" / "training_curves").glob("training_curves_epoch*.png"))
    parts = [
        "# What the demo showed",
        f"{len(answers.truth)} clips of people who were not trained on, six emotions, chance {1 / len(LABELS):.2f}. "
        "Accuracy counts the emotion that an answer ends on.",
        table(["input", *each_seed], scores),
        table(["fused", "accuracy", "macro F1", "UAR"], dict(zip(each_seed, map(summary, fused), strict=True))),
        "![confusion of emotions](confusion.png)",
        "A logistic regression on the means of the same features, for comparison: the clips are drawn so that face and "
        "voice together settle the emotion, so the figures show that the chain works, not how hard the task is.",
        table(["features", "accuracy"], linear_baselines(root)),
        "## When something is missing at test time",
        "The fused models answer the same clips with streams taken away. Without the voice, or without all that shows "
        "the face, two emotions cannot be told apart, so 0.50 is the most there is to reach.",
        table(["taken away", *each_seed], {what: [seed.accuracy for seed in each] for what, each in without.items()}),
        "## Do the answers speak of what the clip shows?",
        "Mentions of muscle movement against the measured action units, and the share of answers, of all seeds, that "
        "speak of a voice or a face that was taken away: the text to learn from names what is shown only.",
        table(
            ["taken away", "precision", "recall", "speaks of the absent"], grounding_rows({"nothing": fused, **without})
        ),
        "## Training",
        *[f"![training curves]({path.relative_to(root)})" for path in curves[-1:]],
        "## Answers",
        *sample_answers(root, answers),
        "## Time",
        table(["stage", "seconds"], {stage: [round(seconds)] for stage, seconds in took.items()}),
    ]
    text = "\n\n".join(parts) + "\n"
    path = root / "report.md"
    path.write_text(text, encoding="utf-8")
    print("\n".join(text.splitlines()[:20]))
    return path


def summary(answers: Answers) -> list[float]:
    """Return accuracy, macro F1 and unweighted average recall."""
    means = classification_scores(answers.counts).means
    return [means[name] for name in ("acc", "macro_f1", "uar")]


def table(header: list[str], rows: dict[str, list[float]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, values in rows.items():
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in values]
        lines.append("| " + " | ".join([name.replace("_", " "), *cells]) + " |")
    return "\n".join(lines)


def read_answers(root: Path, run: str, without: str = "nothing") -> Answers:
    """Return the answers of one run's last checkpoint, with streams taken away or not."""
    folder = root / "answers" / f"without_{without}-demo" / run
    files = sorted(folder.glob("*-description.jsonl"))
    if not files:
        raise ValueError(f"{folder}: expected the answers of a run, found none; run the demo with --fresh")
    return Answers(read_records(files[-1], "name", "answer", "labels"))


def grounding_rows(answers: dict[str, list[Answers]]) -> dict[str, list[float]]:
    """Return for the answers of all seeds: precision and recall of AU mentions, share that speaks of what is absent."""
    found = {what: ground_answers(chain(*(seed.records for seed in each))) for what, each in answers.items()}
    return {what: [each.precision, each.recall, each.absent_share] for what, each in found.items()}


def linear_baselines(root: Path) -> dict[str, list[float]]:
    """Return the test accuracy of a logistic regression on each stream's mean features, and on all of them."""
    config = load_config(Path(__file__).parents[2] / "train_configs/demo.yaml")
    section, store = config.datasets["demo"], FeatureStore(root / "features", "demo")
    clips = pd.read_csv(root / "clips.csv", dtype=str)
    training = (clips.split == "train").to_numpy()
    streams = {}
    for stream in STORED_MODALITIES:  # a clip that has no feature has a mean of zeros
        spec = section.spec(stream, config.model.feature_dim(stream))
        arrays = [store.read(spec, name) for name in clips.name]
        streams[str(stream)] = np.stack([a.mean(axis=0) if len(a) else np.zeros(spec.dim, np.float32) for a in arrays])
    scores = {}
    for name, x in {**streams, "all together": np.concatenate(list(streams.values()), axis=1)}.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(x[training], clips.emotion[training])
        scores[name] = [float(model.score(x[~training], clips.emotion[~training]))]
    return scores


def sample_answers(root: Path, answers: Answers) -> list[str]:
    """Draw some clips, of different emotions, and return lines that show each beside its answer."""
    chosen: dict[str, str] = {}
    for name, emotion in answers.truth.items():
        chosen.setdefault(emotion, name)
    lines = []
    for name in sorted(chosen.values())[:SAMPLES]:
        video = read_video(root / "clips" / "video" / f"{name}.mp4")
        units = read_openface(root / "clips" / "openface" / f"{name}.csv")
        frame, path = video.frames([video.num_frames // 2])[0], root / f"sample_{name}.png"
        draw_sample(path, frame, units, answers.texts[name])
        lines += [f"**{name}** ({answers.truth[name]}): {answers.texts[name]}", f"![{name}]({path.name})"]
    return lines


def draw_sample(path: Path, frame: np.ndarray, units: pd.DataFrame, answer: str) -> Path:
    """Draw a frame, the strongest action units over time and the answer below them."""
    intensities = units.filter(regex="_r$")
    strongest = intensities.max().nlargest(5).index
    figure, (left, right) = new_figure((9, 3.4), 1, 2, width_ratios=[1, 2])
    left.imshow(frame)
    left.axis("off")
    for column in strongest:
        right.plot(units["timestamp"], intensities[column], label=column.removesuffix("_r"))
    right.set(xlabel="seconds", ylabel="intensity (0 to 5)", ylim=(0, 5))
    right.legend(fontsize=8, ncols=5, loc="upper center")
    right.grid(alpha=0.3)
    figure.text(0.02, 0.02, textwrap.fill(answer, 110), fontsize=10)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    return save_figure(figure, path, dpi=110)
