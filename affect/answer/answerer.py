"""Clips with features and a question in, answers and what they rest on out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from affect.answer.files import REASONING, Answer
from affect.core.au_json import AuAnalysis
from affect.core.failures import Failure
from affect.core.layouts import LAYOUTS
from affect.core.schema import Batch, Clip, Modality
from affect.data.collate import Collator
from affect.data.config import Config
from affect.data.dataset import ClipDataset, check_prompt, make_sample, query_tokens
from affect.data.prompts import load_prompts, shown_streams
from affect.features.store import FeatureError
from affect.models.affectgpt import AffectGPT, Decoding

logger = logging.getLogger(__name__)


@dataclass
class Answerer:
    """A trained model ready to answer in one layout."""

    model: AffectGPT
    config: Config
    layout: str
    writer: Callable[[Batch, Decoding], list[str]]
    """What writes the answers: `AffectGPT.generate`, or vLLM in its stead."""
    look: Callable[[Batch], None] | None = None
    """Is shown every batch of prompts before it is answered."""
    failures: list[Failure] = field(default_factory=list)
    """Clips that could not be answered."""

    def __post_init__(self) -> None:
        inference = self.config.inference
        self.prompts = load_prompts(self.config.model.prompt_file)
        self.collator = Collator(self.model.tokenizer, self.config.model.max_length, generation=True)
        self.decoding = Decoding(
            inference.max_new_tokens, inference.do_sample, inference.top_p, inference.temperature, inference.seed
        )

    @torch.no_grad()
    def answer(
        self, clips: Sequence[Clip], features: Sequence[dict[Modality, np.ndarray]], kind: str = REASONING
    ) -> list[Answer]:
        """Answer one batch of clips, each with stream -> [T, D] (T is 0 where it has none)."""
        without = self.config.inference.without
        features = [{s: x[:0] if s in without else x for s, x in arrays.items()} for arrays in features]
        tokens = query_tokens(self.config.model)
        samples = [
            make_sample(clip, arrays, self.layout, self.prompts, kind, tokens)
            for clip, arrays in zip(clips, features, strict=True)
        ]
        batch = self.collator(samples).to(next(self.model.parameters()).device)
        if self.look:
            self.look(batch)
        texts = self.writer(batch, self.decoding)
        return [
            _answer(clip, arrays, self.layout, self.prompts.question(kind), text)
            for clip, arrays, text in zip(clips, features, texts, strict=True)
        ]

    def check_prompt(self, dataset: ClipDataset, kind: str) -> None:
        """Raise ValueError where the prompts of a data set are too long for the model even without words spoken."""
        check_prompt(dataset, self.prompts, kind, query_tokens(self.config.model), self.collator)

    def answer_dataset(self, dataset: ClipDataset, kind: str = REASONING) -> Iterator[Answer]:
        """Answer every clip of a data set, batch after batch; clips whose features are bad go to `failures`."""
        size = self.config.inference.batch_size
        for start in range(0, len(dataset), size):
            batch = []
            for index in range(start, min(start + size, len(dataset))):
                try:
                    batch.append((dataset.clips[index], dataset.features(index)))
                except FeatureError as error:
                    self.failures.append(Failure(dataset.clips[index].name, "answer", str(error)))
                    logger.warning("%s", error)
            if batch:
                yield from self.answer([clip for clip, _ in batch], [features for _, features in batch], kind)


def with_action_units(answer: Answer, analysis: AuAnalysis) -> Answer:
    """Return an answer with the highest intensity of each action unit over the clip, strongest first."""
    highest: dict[str, float] = {}
    for frame in analysis.per_frame_au_descriptions:
        for column, intensity in frame.get("active_aus", {}).items():
            unit = column.removesuffix("_r")
            highest[unit] = max(intensity, highest.get(unit, 0.0))
    ordered = dict(sorted(highest.items(), key=lambda item: -item[1]))
    return replace(answer, action_units=ordered)


def _answer(clip: Clip, features: dict[Modality, np.ndarray], layout: str, question: str, text: str) -> Answer:
    present = {stream for stream, array in features.items() if len(array)}
    return Answer(
        name=clip.name,
        dataset=clip.dataset,
        question=question,
        answer=text,
        streams=[str(stream) for stream in shown_streams(layout, present)],
        missing=[str(stream) for stream in LAYOUTS[layout].needed if stream not in present],
        subtitle=clip.subtitle,
        labels=list(clip.labels),
    )
