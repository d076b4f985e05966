"""From samples to padded batches.

Worked example, pad id 0, bos 1, eos 2, prompt "a b" -> [5, 6], answer "c" -> [7]:
training   input_ids [1, 5, 6, 7, 2], labels [-100, -100, -100, 7, 2], padded on the right;
generation input_ids [1, 5, 6], padded on the left, so that every row goes on at its last column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from affect.schema import Batch, Modality, Sample

IGNORED = -100
"""Label of positions that the loss leaves out."""


@dataclass(frozen=True)
class Collator:
    """Turns samples into a batch for training, or (with `generation`) into prompts to go on from."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    generation: bool = False

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return the batch; raises ValueError when a prompt is longer than `max_length` tokens."""
        rows = [self._row(sample) for sample in samples]
        width = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.full((len(rows), width), pad, dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, (ids, targets) in enumerate(rows):
            where = slice(width - len(ids), width) if self.generation else slice(0, len(ids))
            input_ids[row, where] = torch.tensor(ids)
            labels[row, where] = torch.tensor(targets)
            attention_mask[row, where] = 1
        features, masks = pad_features([sample.features for sample in samples])
        names = [sample.clip.name for sample in samples]
        return Batch(names, input_ids, attention_mask, labels, features, masks, [sample.prompt for sample in samples])

    def _row(self, sample: Sample) -> tuple[list[int], list[int]]:
        bos = self.tokenizer.bos_token_id
        head = [] if bos is None else [bos]
        prompt = self.tokenizer(sample.prompt, add_special_tokens=False).input_ids
        if len(prompt) > self.max_length:
            raise ValueError(
                f"clip {sample.clip.name!r}: expected a prompt of at most {self.max_length} tokens, "
                f"found {len(prompt)}; shorten its subtitle or raise model.max_length"
            )
        if self.generation:
            return head + prompt, [IGNORED] * (len(head) + len(prompt))
        answer = self.tokenizer(sample.answer, add_special_tokens=False).input_ids[: self.max_length]
        answer.append(self.tokenizer.eos_token_id)
        return head + prompt + answer, [IGNORED] * (len(head) + len(prompt)) + answer


def pad_features(
    samples: Sequence[dict[Modality, np.ndarray]],
) -> tuple[dict[Modality, torch.Tensor], dict[Modality, torch.Tensor]]:
    """Return stream -> [B, T, D] padded with zeros, and stream -> [B, T] bool that is False at padding."""
    features, masks = {}, {}
    for stream in dict.fromkeys(stream for sample in samples for stream in sample):
        arrays = [sample[stream] for sample in samples]
        longest = max(len(array) for array in arrays)
        padded = torch.zeros(len(arrays), longest, arrays[0].shape[1])
        mask = torch.zeros(len(arrays), longest, dtype=torch.bool)
        for row, array in enumerate(arrays):
            padded[row, : len(array)] = torch.from_numpy(array)
            mask[row, : len(array)] = True
        features[stream], masks[stream] = padded, mask
    return features, masks
