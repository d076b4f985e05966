"""What an evaluation says of a network: scores, tables and pictures.

Of one true class an image: accuracy, macro F1, UAR and weighted F1 as affect.evaluate.classification has them. Of
several (multi-label): means over the classes of F1 at 0.5 and of the average precision, and the share of images whose
every class is right. Calibration is that of the likeliest class, or that of every single yes or no.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affect.core.plots import draw_bars, draw_confusion
from affect.evaluate.classification import class_rows, classification_scores, confusion
from affect.evaluate.result_tables import Report, ResultTable
from affect.expressions.calibration import Reliability, draw_reliability, reliability
from affect.expressions.samples import SEEN

if TYPE_CHECKING:  # scores of labels that are there already need no torch
    from affect.expressions.evaluation import Evaluation


@dataclass(frozen=True)
class ExpressionScores:
    """All that is reported of an evaluation."""

    means: dict[str, float]
    """Name -> score over all images."""
    per_class: dict[str, np.ndarray]
    """Name -> scores of the classes [L], NaN where they are not defined; n: images of which a class is true."""
    calibration: Reliability
    counts: np.ndarray | None
    """[L, L + 1] as `affect.evaluate.classification.confusion` has it; None for multi-label."""


def expression_scores(evaluation: Evaluation, classes: Sequence[str], multi_label: bool) -> ExpressionScores:
    """Return the scores of an evaluation; NaN probabilities count as no answer."""
    return _many_labels(evaluation) if multi_label else _one_label(evaluation, classes)


def predicted_labels(probabilities: np.ndarray, classes: Sequence[str]) -> list[str | None]:
    """Return the likeliest class of each row of [N, L]; None where the network gave NaN."""
    known = np.isfinite(probabilities).all(axis=1)
    return [classes[row.argmax()] if fine else None for row, fine in zip(probabilities, known, strict=True)]


def _one_label(evaluation: Evaluation, classes: Sequence[str]) -> ExpressionScores:
    truth, probabilities = [classes[label] for label in evaluation.labels], evaluation.probabilities
    counts = confusion(truth, predicted_labels(probabilities, classes), classes)
    scores = classification_scores(counts)
    right = np.nan_to_num(probabilities).argmax(axis=1) == evaluation.labels
    calibration = reliability(probabilities.max(axis=1, initial=0), right)
    means = scores.means | {"ece": calibration.ece, "loss": evaluation.loss}
    return ExpressionScores(means, scores.per_class, calibration, counts)


def _many_labels(evaluation: Evaluation) -> ExpressionScores:
    from sklearn.metrics import average_precision_score  # slow to import

    truth, said = evaluation.targets >= SEEN, evaluation.probabilities >= SEEN
    right, true, answered = (values.sum(axis=0) for values in (truth & said, truth, said))
    with np.errstate(invalid="ignore"):
        f1, recall, precision = 2 * right / (true + answered), right / true, right / answered
    f1 = np.where(true > 0, f1, np.nan)
    scores = np.nan_to_num(evaluation.probabilities)
    areas = np.array(
        [average_precision_score(truth[:, i], scores[:, i]) if true[i] else np.nan for i in range(len(true))]
    )
    calibration = reliability(evaluation.probabilities.ravel(), truth.ravel())
    exact = float((truth == said).all(axis=1).mean()) if len(truth) else float("nan")
    means = {"macro_f1": _mean(f1), "map": _mean(areas), "exact_match": exact}
    means |= {"ece": calibration.ece, "loss": evaluation.loss}
    per_class = {"f1": f1, "recall": recall, "precision": precision, "average_precision": areas, "n": true}
    return ExpressionScores(means, per_class, calibration, None)


def _mean(values: np.ndarray) -> float:
    """Return the mean of what is not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def evaluation_report(
    evaluation: Evaluation, scores: ExpressionScores, classes: Sequence[str], about: dict[str, Any], note: str = ""
) -> Report:
    """Return scores as one JSON object and tables; `about` (what was scored) goes into the JSON, `note` below them."""
    shares = {key: value for key, value in scores.means.items() if key != "loss"}
    loss = f"{scores.means['loss']:.4f}"  # in nats: no share, so not to be shown in percent
    n = len(evaluation.names)
    per_label, bins = class_rows(scores.per_class, classes), scores.calibration.rows()
    content = {
        **about,
        **scores.means,
        "n": n,
        "per_label": per_label,
        "confusion": None if scores.counts is None else scores.counts.tolist(),
        "calibration": bins,
    }
    tables = [
        ResultTable("expressions", [{**shares, "loss": loss, "n": n}], note),
        ResultTable("labels", per_label),
        ResultTable("calibration", [row for row in bins if row["n"]]),
    ]
    return Report(content, tables)


def draw_evaluation(folder: Path, scores: ExpressionScores, classes: Sequence[str], title: str = "") -> list[Path]:
    """Draw confusion matrix (of one true class an image), bars of each class and reliability; return the paths."""
    bars = {name: scores.per_class[name] for name in ("recall", "precision")}
    axes = ("confidence", "share right") if scores.counts is not None else ("probability of a class", "share true")
    drawn = [
        draw_bars(folder / "labels.png", classes, bars, title),
        draw_reliability(folder / "reliability.png", scores.calibration, title, *axes),
    ]
    if scores.counts is not None:
        drawn.insert(0, draw_confusion(folder / "confusion.png", scores.counts, classes, title))
    return drawn
