"""From samples to padded batches.

Worked example, pad id 0, bos 1, eos 2, prompt "a b" -> [5, 6], answer "c" -> [7]:
training   input_ids [1, 5, 6, 7, 2], labels [-100, -100, -100, 7, 2], answers [2, 3], padded on the right;
generation input_ids [1, 5, 6], padded on the left, so that every row goes on at its last column.
A text that is too long loses the beginning of its subtitle, so that what is said at the clip's end is kept, then the
end of the caption of its action units, never its placeholders or its question; then an answer loses its own end, and
the token that ends the text with it, which is not to be learned in its midst.
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
    """Most tokens of a prompt, and of an answer."""
    generation: bool = False
    context: int = 2**31
    """Most tokens of a whole text that the language model reads."""
    room: int = 0
    """How many of them are kept for an answer that is yet to be written."""

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return the batch (raises ValueError as `prompt_ids`, or where prompts show a stream in unlike numbers)."""
        rows = [self._row(sample) for sample in samples]
        input_ids = self._padded([ids for ids, _, _ in rows], self.tokenizer.pad_token_id)
        labels = self._padded([targets for _, targets, _ in rows], IGNORED)
        attention_mask = self._padded([[1] * len(ids) for ids, _, _ in rows], 0)
        features, masks = pad_features([sample.features for sample in samples])
        shown, places = self._placeholders(input_ids)
        return Batch(
            names=[sample.clip.name for sample in samples],
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            answers=torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1)).flatten().nonzero().flatten(),
            padding=input_ids.numel() - sum(len(ids) for ids, _, _ in rows),
            features=features,
            masks=masks,
            lengths={stream: [len(sample.features[stream]) for sample in samples] for stream in features},
            rows=shown,
            places=places,
            left_out=[words for _, _, words in rows],
        )

    def prompt_ids(self, sample: Sample) -> list[int]:
        """Return the prompt's token ids, at most `max_length`, and `room` less than the model's `context`.

        Raises ValueError when it is longer than the model reads even without its subtitle and caption.
        """
        return self._prompt(sample, self.room)[0]

    def _prompt(self, sample: Sample, room: int) -> tuple[list[int], int]:
        """Return the prompt's token ids, and how many words of its subtitle and caption are not in them."""
        ids = self.tokenizer(sample.prompt, add_special_tokens=False).input_ids
        most = min(self.max_length, self.context - 1)
        excess = len(ids) - min(most, self.context - 1 - room)
        if excess <= 0:
            return ids, 0
        places = self.tokenizer(sample.prompt, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        spoken, told = (
            [i for i, (begin, end) in enumerate(places) if first <= begin < end <= stop]
            for first, stop in (sample.spoken, sample.told)
        )
        if (fixed := len(ids) - len(spoken) - len(told)) > most:
            raise ValueError(
                f"clip {sample.clip.name!r}: expected a prompt of at most {most} tokens, found "
                f"{fixed} without its subtitle; raise model.max_length, make fewer query tokens, or "
                "take a language model of longer texts"
            )
        # tokens of one letter go together
        of_spoken = spoken[: next((n for n, i in enumerate(spoken) if n >= excess and _begins(places, i)), len(spoken))]
        kept = max(len(told) - max(excess - len(spoken), 0), 0)
        while 0 < kept < len(told) and not _begins(places, told[kept]):
            kept -= 1
        cuts = [part for part in (of_spoken, told[kept:]) if part]
        words = sum(len(sample.prompt[places[part[0]][0] : places[part[-1]][1]].split()) for part in cuts)
        cut = {i for part in cuts for i in part}
        return [token for i, token in enumerate(ids) if i not in cut], words

    def _row(self, sample: Sample) -> tuple[list[int], list[int], int]:
        """Return ids, labels, and how many words of subtitle and caption are not in them."""
        bos = self.tokenizer.bos_token_id
        head = [] if bos is None else [bos]
        if self.generation:
            prompt, left_out = self._prompt(sample, self.room)
            return head + prompt, [IGNORED] * (len(head) + len(prompt)), left_out
        answer = self.tokenizer(sample.answer, add_special_tokens=False).input_ids
        answer = [*answer, self.tokenizer.eos_token_id] if len(answer) <= self.max_length else answer[: self.max_length]
        prompt, left_out = self._prompt(sample, len(answer))
        answer = answer[: self.context - 1 - len(prompt)]
        return head + prompt + answer, [IGNORED] * (len(head) + len(prompt)) + answer, left_out

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


def _begins(places: Sequence[tuple[int, int]], i: int) -> bool:
    """Whether a token begins a letter, rather than going on with that of the token before."""
    return places[i][0] >= places[i - 1][1]


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
