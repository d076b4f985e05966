"""Inference: a checkpoint, clips with features and a question in; answers and what they rest on out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from affect.au_json import AuAnalysis
from affect.config import Config, InferenceConfig
from affect.data.collate import Collator
from affect.data.dataset import ClipDataset, make_sample, query_tokens
from affect.data.prompts import load_prompts, shown_streams
from affect.layouts import LAYOUTS
from affect.models.affectgpt import AffectGPT, Decoding, build_affectgpt
from affect.schema import Clip, Modality
from affect.store import FeatureError
from affect.train.checkpoint import load_weights
from affect.train.loop import to_device

logger = logging.getLogger(__name__)

REASONING, LABELS = "description", "ovlabel"
"""Question kinds of the two ways to answer."""


@dataclass(frozen=True)
class Answer:
    """What the model said of a clip, and what it had to go by."""

    name: str
    dataset: str
    question: str
    answer: str
    streams: list[str]
    """Streams that the prompt showed; 'multi' is the pre-fusion of several."""
    missing: list[str]
    """Streams that the layout knows and the clip does not have."""
    subtitle: str = ""
    action_units: dict[str, float] = field(default_factory=dict)
    """Highest intensity (0 to 5) of each action unit over the clip, where its AU analysis is known."""
    labels: list[str] = field(default_factory=list)
    """True labels, where the table has them."""


@dataclass
class Answerer:
    """A trained model ready to answer in one layout."""

    model: AffectGPT
    config: Config
    layout: str
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Clips that could not be answered, and why."""

    def __post_init__(self) -> None:
        inference = self.config.inference
        self.prompts = load_prompts(self.config.model.prompt_file)
        self.collator = Collator(self.model.tokenizer, self.config.model.max_length, generation=True)
        self.decoding = Decoding(inference.max_new_tokens, inference.do_sample, inference.top_p, inference.temperature)

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
        batch = to_device(self.collator(samples), next(self.model.parameters()).device)
        texts = self.model.generate(batch, self.decoding)
        return [
            _answer(clip, arrays, self.layout, self.prompts.question(kind), text)
            for clip, arrays, text in zip(clips, features, texts, strict=True)
        ]

    def answer_dataset(self, dataset: ClipDataset, kind: str = REASONING) -> Iterator[Answer]:
        """Answer every clip of a data set, batch after batch; clips whose features are bad go to `failures`."""
        size = self.config.inference.batch_size
        for start in range(0, len(dataset), size):
            batch = []
            for index in range(start, min(start + size, len(dataset))):
                try:
                    batch.append((dataset.clips[index], dataset.features(index)))
                except FeatureError as error:
                    self.failures.append((dataset.clips[index].name, str(error)))
                    logger.warning("%s", error)
            if batch:
                yield from self.answer([clip for clip, _ in batch], [features for _, features in batch], kind)


def load_answerer(config: Config, checkpoint: Path, layout: str) -> Answerer:
    """Return the model of a checkpoint on its device, ready to answer in `layout`.

    config: what the checkpoint was trained with, and the wanted `inference` section. Raises ValueError
    when the checkpoint does not fit or was never trained on a stream of the layout.
    """
    trained = [LAYOUTS[section.face_or_frame] for section in config.datasets.values()]
    known = {stream for each in trained for stream in each.branches}
    unknown = [stream for stream in LAYOUTS[layout].branches if stream not in known]
    if unknown or (LAYOUTS[layout].fused and not any(each.fused for each in trained)):
        names = ", ".join(section.face_or_frame for section in config.datasets.values())
        raise ValueError(f"{checkpoint}: expected a layout like those it was trained on ({names}), found {layout}")
    device = inference_device(config.inference)
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    model = build_affectgpt(config.model, trained, torch.bfloat16 if half else torch.float32)
    load_weights(checkpoint, model)
    return Answerer(model.to(device).eval(), config, layout)


def inference_device(inference: InferenceConfig) -> torch.device:
    """Return the configured device; `auto` takes a GPU where there is one."""
    on_gpu = torch.cuda.is_available() and inference.device != "cpu"
    return torch.device("cuda" if on_gpu else "cpu")


def with_action_units(answer: Answer, analysis: AuAnalysis) -> Answer:
    """Return an answer with the highest intensity of each action unit over the clip, strongest first."""
    highest: dict[str, float] = {}
    for frame in analysis.per_frame_au_descriptions:
        for column, intensity in frame.get("active_aus", {}).items():
            unit = column.removesuffix("_r")
            highest[unit] = max(intensity, highest.get(unit, 0.0))
    ordered = dict(sorted(highest.items(), key=lambda item: -item[1]))
    return replace(answer, action_units=ordered)


def write_answers(path: Path, answers: Iterable[Answer], append: bool = False) -> int:
    """Write answers as JSON lines, each as soon as it comes, and return how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("a" if append else "w", encoding="utf-8", buffering=1) as handle:
        for answer in answers:
            count += 1
            handle.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
    return count


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
