"""Pictures of labels on an emotion wheel: confusion of its clusters, their shares, all of them around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affect.core.plots import colormap, draw_bars, draw_confusion, new_figure, save_figure
from affect.evaluate.answers import split_labels
from affect.evaluate.emotion_wheel import EmotionWheels

_TRUE, _FOUND = "tab:blue", "tab:orange"


def draw_wheel(
    path: Path, wheels: EmotionWheels, wheel: int, truth: Counter[str], found: Counter[str], title: str = ""
) -> Path:
    """Draw how often each level-2 cluster of a wheel is true and answered, in the sectors of its level-1 clusters.

    truth and found: level-2 cluster -> clips. Returns the path.
    """
    tops = wheels.trees[wheel, 1]
    below = [word for word in dict.fromkeys(wheels.trees[wheel, 2].values()) if word in tops]
    clusters = sorted(below, key=lambda word: list(dict.fromkeys(tops.values())).index(tops[word]))
    angles = 2 * np.pi * np.arange(len(clusters)) / len(clusters)
    width = 2 * np.pi / len(clusters)
    highest = max([1, *truth.values(), *found.values()])
    figure, axes = new_figure((8.5, 8.5), subplot_kw={"projection": "polar"})
    for side, (counts, color, name) in enumerate(((truth, _TRUE, "true"), (found, _FOUND, "answered"))):
        heights = [counts[word] for word in clusters]
        axes.bar(angles + (side - 0.5) * 0.4 * width, heights, 0.4 * width, color=color, label=name)
    colors = colormap("tab10")
    for k, top in enumerate(dict.fromkeys(tops[word] for word in clusters)):
        inside = [angle for angle, word in zip(angles, clusters, strict=True) if tops[word] == top]
        axes.bar(np.mean(inside), 0.08 * highest, len(inside) * width, 1.04 * highest, color=colors(k % 10), alpha=0.6)
        axes.text(np.mean(inside), 1.08 * highest, top, ha="center", va="center", fontsize=9, weight="bold")
    for angle, word in zip(angles, clusters, strict=True):
        turned = np.degrees(angle)
        outside = 180 if 90 < turned < 270 else 0
        placed = {"rotation": turned + outside, "rotation_mode": "anchor", "ha": "right" if outside else "left"}
        axes.text(angle, 1.16 * highest, word, va="center", fontsize=7, **placed)
    axes.set_xticks([])
    axes.set_ylim(-0.15 * highest, 1.13 * highest)
    axes.set_yticks([highest / 2, highest], [f"{highest / 2:g}", f"{highest:g}"], fontsize=7)
    axes.spines["polar"].set_visible(False)
    axes.set_title(title, pad=50)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.08, -0.08), frameon=False)
    return save_figure(figure, path)


def cluster_confusion(
    truth: Sequence[frozenset[str]], found: Sequence[frozenset[str]], labels: Sequence[str]
) -> np.ndarray:
    """Return counts [L, L + 1] of true clusters against answered ones, the last column for clips without an answer.

    An answer that names a true cluster counts as it; any other is divided among the clusters that it names.
    """
    counts = np.zeros((len(labels), len(labels) + 1))
    for true, answered in zip(truth, found, strict=True):
        columns = [labels.index(other) for other in answered] or [len(labels)]
        for row in map(labels.index, true):
            if row in columns:
                counts[row, row] += 1
            else:
                counts[row, columns] += 1 / len(columns)
    return counts


def draw_label_pictures(
    folder: Path, truth: Mapping[str, Any], answers: Mapping[str, Any], wheels: EmotionWheels, wheel: int = 1
) -> list[Path]:
    """Draw the confusion of a wheel's level-1 clusters, their recall and precision, and the whole wheel; return paths.

    truth and answers: name -> labels as `split_labels` reads them.
    """

    def clusters(table: Mapping[str, Any], level: int) -> list[frozenset[str]]:
        return [wheels.to_clusters(split_labels(table[name]), level)[wheel - 1] for name in truth]

    tops = list(dict.fromkeys(wheels.trees[wheel, 1].values()))
    said = clusters(answers, 1)
    counts = cluster_confusion(clusters(truth, 1), said, tops)
    mentioned = np.array([sum(cluster in found for found in said) for cluster in tops])
    with np.errstate(invalid="ignore"):
        shares = {"recall": counts.diagonal() / counts.sum(axis=1), "precision": counts.diagonal() / mentioned}
    words = (Counter(word for found in clusters(table, 2) for word in found) for table in (truth, answers))
    title = f"emotion wheel {wheel}"
    return [
        draw_confusion(folder / "confusion.png", counts, tops, title),
        draw_bars(folder / "clusters.png", tops, shares, title),
        draw_wheel(folder / "wheel.png", wheels, wheel, *words, title),
    ]
