"""The demo's report: accuracies, baselines, curves and sample answers with a frame and the action units."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from affect.core.plots import draw_confusion, new_figure, save_figure
from affect.core.schema import STORED_MODALITIES, Modality
from affect.data.config import DatasetConfig, load_config
from affect.evaluate.answers import conclusion
from affect.evaluate.classification import classification_scores, confusion
from affect.evaluate.grounding import ground_answers
from affect.evaluate.results import read_records
from affect.features.store import FeatureStore
from examples.demo.clips import EMOTIONS
from extractors.au.openface import read_openface
from extractors.media.video import read_video

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


def write_report(
    root: Path, seeds: list[int], inputs: list[str], removals: list[str], seconds: dict[str, float]
) -> Path:
    """Write report.md and its pictures into `root` and return its path."""
    scores = {name: [read_answers(root, f"{name}_seed{seed}").accuracy for seed in seeds] for name in inputs}
    missing = {what: [read_answers(root, f"fused_seed{seed}", what).accuracy for seed in seeds] for what in removals}
    baselines = linear_baselines(root)
    answers = read_answers(root, f"fused_seed{seeds[0]}")
    pictures = sample_pictures(root, answers)
    draw_confusion(root / "confusion.png", answers.counts, LABELS, "fused, held-out people")
    first = f"fused_seed{seeds[0]}"
    grounded = {"nothing": answers, **{what: read_answers(root, first, what) for what in removals}}
    curves = sorted((root / "runs" / f"fused_seed{seeds[0]}" / "training_curves").glob("training_curves_epoch*.png"))
    chance = 1 / len(LABELS)
    lines = [
        "# What the demo showed",
        "",
        f"{len(answers.truth)} clips of people who were not trained on, six emotions, chance {chance:.2f}. "
        "Accuracy counts the emotion that an answer ends on.",
        "",
        *table(["input", *[f"seed {seed}" for seed in seeds]], scores),
        "",
        *table(["fused", "accuracy", "macro F1", "UAR"], {f"seed {seed}": summary(root, seed) for seed in seeds}),
        "",
        "![confusion of emotions](confusion.png)",
        "",
        "A logistic regression on the means of the same features, for comparison: the clips are drawn so that face and "
        "voice together settle the emotion, so the figures show that the chain works, not how hard the task is.",
        "",
        *table(["features", "accuracy"], {name: [value] for name, value in baselines.items()}),
        "",
        "## When something is missing at test time",
        "",
        "The fused models answer the same clips with streams taken away. Without the voice, or without all that shows "
        "the face, two emotions cannot be told apart, so 0.50 is the most there is to reach.",
        "",
        *table(["taken away", *[f"seed {seed}" for seed in seeds]], missing),
        "",
        "## Do the answers speak of what the clip shows?",
        "",
        "Mentions of muscle movement against the measured action units, and the share of answers that speak of a voice "
        "or a face that was taken away: the text to learn from always names both, so the models do too.",
        "",
        *table(["taken away", "precision", "recall", "speaks of the absent"], grounding_rows(grounded)),
        "",
        "## Training",
        "",
        *[f"![training curves]({path.relative_to(root)})" for path in curves[-1:]],
        "",
        "## Answers",
        "",
    ]
    for name, path in pictures.items():
        lines += [f"**{name}** ({answers.truth[name]}): {answers.texts[name]}", "", f"![{name}]({path.name})", ""]
    lines += ["## Time", "", *table(["stage", "seconds"], {name: [round(value)] for name, value in seconds.items()})]
    path = root / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines[:20]))
    return path


def summary(root: Path, seed: int) -> list[float]:
    """Return accuracy, macro F1 and unweighted average recall of a fused model."""
    scores = classification_scores(read_answers(root, f"fused_seed{seed}").counts)
    return [scores.means[name] for name in ("acc", "macro_f1", "uar")]


def table(header: list[str], rows: dict[str, list[float]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, values in rows.items():
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in values]
        lines.append("| " + " | ".join([name.replace("_", " "), *cells]) + " |")
    return lines


def read_answers(root: Path, run: str, without: str = "nothing") -> Answers:
    """Return the answers of one run's last checkpoint, with streams taken away or not."""
    folder = root / "answers" / f"without_{without}-demo" / run
    files = sorted(folder.glob("*-description.jsonl"))
    if not files:
        raise ValueError(f"{folder}: expected the answers of a run, found none; run the demo with --fresh")
    return Answers(read_records(files[-1], "name", "answer", "labels"))


def grounding_rows(answers: dict[str, Answers]) -> dict[str, list[float]]:
    """Return for each set of answers: precision and recall of AU mentions, share that speaks of an absent stream."""
    found = {what: ground_answers(each.records) for what, each in answers.items()}
    return {what: [each.precision, each.recall, each.absent_share] for what, each in found.items()}


def linear_baselines(root: Path) -> dict[str, float]:
    """Return the test accuracy of a logistic regression on each stream's mean features, and on all of them."""
    config = load_config(Path(__file__).parents[2] / "train_configs/demo.yaml")
    clips = pd.read_csv(root / "clips.csv", dtype=str)
    training = (clips.split == "train").to_numpy()
    streams = {
        stream: mean_features(root, config.datasets["demo"], config.model.feature_dim(stream), stream, clips.name)
        for stream in STORED_MODALITIES
    }
    scores = {}
    for name, columns in {**{str(s): [s] for s in streams}, "all together": list(streams)}.items():
        x = np.concatenate([streams[s] for s in columns], axis=1)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(x[training], clips.emotion[training])
        scores[name] = float(model.score(x[~training], clips.emotion[~training]))
    return scores


def mean_features(root: Path, config: DatasetConfig, dim: int, stream: Modality, names: pd.Series) -> np.ndarray:
    """Return the mean feature of each clip [N, D]; zeros where a clip has none."""
    store = FeatureStore(root / "features", "demo")
    arrays = [store.read(config.spec(stream, dim), name) for name in names]
    return np.stack([array.mean(axis=0) if len(array) else np.zeros(dim, np.float32) for array in arrays])


def sample_pictures(root: Path, answers: Answers) -> dict[str, Path]:
    """Draw some answers, of different emotions, each beside a frame and the action units over time."""
    chosen: dict[str, str] = {}
    for name, emotion in answers.truth.items():
        chosen.setdefault(emotion, name)
    paths = {}
    for name in sorted(chosen.values())[:SAMPLES]:
        video = read_video(root / "clips" / "video" / f"{name}.mp4")
        units = read_openface(root / "clips" / "openface" / f"{name}.csv")
        paths[name] = draw_sample(
            root / f"sample_{name}.png", video.frames([video.num_frames // 2])[0], units, answers.texts[name]
        )
    return paths


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
