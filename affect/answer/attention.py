"""What each query of the pre-fusion read of a clip, kept as numbers and drawn."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affect.core.files import atomic_write
from affect.core.layouts import LAYOUTS
from affect.core.plots import heat_map, new_figure, save_figure
from affect.core.schema import Batch, check_name
from affect.data.config import ModelConfig
from affect.models.affectgpt import AffectGPT

logger = logging.getLogger(__name__)


@dataclass
class AttentionWriter:
    """Writes {folder}/{clip}.npz, stream -> float32 [layers, heads, Q, T], and a picture of the first clips."""

    model: AffectGPT
    folder: Path
    pictures: int = 5
    """Clips that are drawn."""

    def count_unseen(self, answered: Collection[str]) -> None:
        """Say how many clips were answered before but have no file, for those are not looked at again."""
        without = sum(not (self.folder / f"{name}.npz").is_file() for name in answered)
        if without:
            logger.warning("--attention: %d clips were answered before without it; --overwrite includes them", without)

    def __call__(self, batch: Batch) -> None:
        """Write what the queries read of the clips of a batch; clips that show no fused tokens have no file."""
        for name, maps in zip(batch.names, self.model.attention_of_clips(batch), strict=True):
            if not maps:
                continue
            arrays = {str(stream): weights.float().cpu().numpy() for stream, weights in maps.items()}
            with atomic_write(self.folder / f"{check_name(name)}.npz") as handle:
                np.savez_compressed(handle, **arrays)
            if self.pictures > 0:
                self.pictures -= 1
                draw_attention(self.folder / f"{name}.png", arrays, name)


def check_attention(model: ModelConfig, layout: str) -> None:
    """Raise ValueError where a model has no queries to look at in a layout."""
    found = f"model.multi_fusion_type {model.multi_fusion_type}" if LAYOUTS[layout].fused else f"layout {layout}"
    if model.multi_fusion_type != "qformer" or not LAYOUTS[layout].fused:
        raise ValueError(
            f"--attention: expected a pre-fusion with queries (model.multi_fusion_type qformer and a layout that fuses "
            f"streams), found {found}; leave --attention out"
        )


def draw_attention(path: Path, maps: Mapping[str, np.ndarray], title: str = "") -> Path:
    """Draw stream -> [layers, heads, Q, T] as one heat map of queries and tokens; return the path.

    Layers and heads are averaged, so every row sums to 1 over all streams.
    """
    shares = {stream: weights.mean(axis=(0, 1)) for stream, weights in maps.items() if weights.shape[-1]}
    together = np.concatenate(list(shares.values()), axis=1)
    queries, tokens = together.shape
    figure, axes = new_figure((2.6 + 0.3 * tokens, 1.7 + 0.26 * queries))
    heat_map(axes, together, "share of what a query read", together.max(), aspect="auto")
    start = 0
    for stream, part in shares.items():
        if start:
            axes.axvline(start - 0.5, color="black", linewidth=1.2)
        middle, share = start + (part.shape[1] - 1) / 2, 100 * part.sum(axis=1).mean()
        axes.text(middle, -0.75, f"{stream}\n{share:.0f} %", ha="center", va="bottom", fontsize=9)
        start += part.shape[1]
    axes.set_xticks(range(tokens), [i + 1 for part in shares.values() for i in range(part.shape[1])], fontsize=7)
    axes.set_yticks(range(queries), range(1, queries + 1), fontsize=7)
    axes.set(xlabel="step of the stream", ylabel="query")
    axes.set_title(title, pad=34)
    return save_figure(figure, path)
