"""How long the text of each visit is, known before any feature or tokenizer is touched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from affect.data.dataset import TrainingSamples, asked_kinds
from affect.data.sampling import coin


def text_lengths(samples: TrainingSamples) -> Callable[[int], np.ndarray]:
    """Return a function: cycle -> bytes [N] of subtitle, caption and answer of each clip's visit in that cycle.

    Bytes of UTF-8, since a token of Chinese and one of English text hold about as many of them.
    """
    tables = []
    for dataset in samples.datasets:
        kinds = asked_kinds(dataset.config.label_type)
        answers = [[len(samples.prompts.answer(kind, clip).encode()) for kind in kinds] for clip in dataset.clips]
        words = [[len((clip.subtitle + (clip.nonverbal or "")).encode())] for clip in dataset.clips]
        tables.append(np.array(answers) + np.array(words))
    starts = np.cumsum([0, *(len(table) for table in tables)])

    def of_cycle(cycle: int) -> np.ndarray:
        coins = np.split(coin(samples.seed, cycle, np.arange(starts[-1])), starts[1:-1])
        return np.concatenate(
            [
                table[np.arange(len(table)), (part * table.shape[1]).astype(int)]
                for table, part in zip(tables, coins, strict=True)
            ]
        )

    return of_cycle
