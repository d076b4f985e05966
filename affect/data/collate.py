"""From samples to padded batches.

Worked example, pad id 0, bos 1, eos 2, prompt "a b" -> [5, 6], answer "c" -> [7]:
training   input_ids [1, 5, 6, 7, 2], labels [-100, -100, -100, 7, 2], answers [2, 3], padded on the right;
generation input_ids [1, 5, 6], padded on the left, so that every row goes on at its last column.
A prompt of more than `max_length` tokens loses the end of its subtitle, never its placeholders or its question; an
answer loses its own end, and the token that ends the text with it, which is not to be learned in its midst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from affect.core.schema import PLACEHOLDERS, Batch, Modality, Sample

IGNORED = -100
"""Label of positions that the loss leaves out."""


@dataclass(frozen=True)
class Collator:
    """Turns samples into a batch for training, or (with `generation`) into prompts to go on from."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    generation: bool = False

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return the batch (raises ValueError as `prompt_ids`, or where prompts show a stream in unlike numbers)."""
        rows = [self._row(sample) for sample in samples]
        input_ids = self._padded([ids for ids, _ in rows], self.tokenizer.pad_token_id)
        labels = self._padded([targets for _, targets in rows], IGNORED)
        attention_mask = self._padded([[1] * len(ids) for ids, _ in rows], 0)
        features, masks = pad_features([sample.features for sample in samples])
        shown, places = self._placeholders(input_ids)
        return Batch(
            names=[sample.clip.name for sample in samples],
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            answers=torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1)).flatten().nonzero().flatten(),
            padding=input_ids.numel() - sum(len(ids) for ids, _ in rows),
            features=features,
            masks=masks,
            lengths={stream: [len(sample.features[stream]) for sample in samples] for stream in features},
            rows=shown,
            places=places,
        )

    def prompt_ids(self, sample: Sample) -> list[int]:
        """Return the prompt's token ids, at most `max_length`: of a longer one the end of the subtitle is left out.

        Raises ValueError when the rest of it is longer than that already.
        """
        ids = self.tokenizer(sample.prompt, add_special_tokens=False).input_ids
        excess = len(ids) - self.max_length
        if excess <= 0:
            return ids
        places = self.tokenizer(sample.prompt, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        first, stop = sample.spoken
        spoken = [i for i, (begin, end) in enumerate(places) if first <= begin < end <= stop]
        if excess > len(spoken):
            raise ValueError(
                f"clip {sample.clip.name!r}: expected a prompt of at most {self.max_length} tokens, found "
                f"{len(ids) - len(spoken)} without its subtitle; raise model.max_length, or make fewer query tokens"
            )
        cut = len(spoken) - excess
        while cut > 0 and places[spoken[cut]][0] < places[spoken[cut - 1]][1]:  # tokens of one letter go together
            cut -= 1
        return ids[: spoken[cut]] + ids[spoken[-1] + 1 :]

    def _row(self, sample: Sample) -> tuple[list[int], list[int]]:
        bos = self.tokenizer.bos_token_id
        head = [] if bos is None else [bos]
        prompt = self.prompt_ids(sample)
        if self.generation:
            return head + prompt, [IGNORED] * (len(head) + len(prompt))
        answer = self.tokenizer(sample.answer, add_special_tokens=False).input_ids
        answer = [*answer, self.tokenizer.eos_token_id] if len(answer) <= self.max_length else answer[: self.max_length]
        return head + prompt + answer, [IGNORED] * (len(head) + len(prompt)) + answer

    def _padded(self, rows: list[list[int]], fill: int) -> torch.Tensor:
        side = "left" if self.generation else "right"
        tensors = [torch.tensor(row) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side)

    def _placeholders(
        self, input_ids: torch.Tensor
    ) -> tuple[dict[Modality, torch.Tensor], dict[Modality, torch.Tensor]]:
        """Return stream -> [N] prompts that show it, and stream -> [N, Q] places of its placeholders in [B * L]."""
        rows, places = {}, {}
        for stream, token in PLACEHOLDERS.items():
            found = (input_ids == self.tokenizer.convert_tokens_to_ids(token)).flatten().nonzero().flatten()
            shown, counts = torch.unique(found // input_ids.shape[1], return_counts=True)
            if len(set(counts.tolist())) > 1:
                raise ValueError(
                    f"{token}: expected as many in each prompt of a batch that shows the {stream} tokens, found "
                    f"{counts.tolist()}; the prompt file must name them once in every wording, or not at all"
                )
            if len(shown):
                rows[stream], places[stream] = shown, found.view(len(shown), -1)
        return rows, places


def pad_features(
    samples: Sequence[dict[Modality, np.ndarray]],
) -> tuple[dict[Modality, torch.Tensor], dict[Modality, torch.Tensor]]:
    """Return stream -> [B, T, D] padded with zeros, and stream -> [B, T] bool that is False at padding."""
    features, masks = {}, {}
    for stream in dict.fromkeys(stream for sample in samples for stream in sample):
        arrays = [torch.from_numpy(sample[stream]) for sample in samples]
        features[stream] = pad_sequence(arrays, batch_first=True)
        masks[stream] = pad_sequence([torch.ones(len(array), dtype=torch.bool) for array in arrays], batch_first=True)
    return features, masks
