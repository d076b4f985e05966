"""Inference: a checkpoint, clips with features and a question in; answers and what they rest on out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from peft.tuners.lora import LoraLayer

from affect.answer.files import REASONING, Answer
from affect.core.au_json import AuAnalysis
from affect.core.device import pick_device
from affect.core.layouts import LAYOUTS
from affect.core.schema import Batch, Clip, Modality
from affect.data.collate import Collator
from affect.data.config import Config, InferenceConfig
from affect.data.dataset import ClipDataset, check_prompt, make_sample, query_tokens
from affect.data.prompts import load_prompts, shown_streams
from affect.features.store import FeatureError
from affect.models.affectgpt import AffectGPT, Decoding, build_affectgpt
from affect.models.saved import load_weights

logger = logging.getLogger(__name__)

FIRST_CLIPS = 8
"""Clips of which one at least must have features that can be read."""


@dataclass
class Answerer:
    """A trained model ready to answer in one layout."""

    model: AffectGPT
    config: Config
    layout: str
    generate: Callable[[Batch, Decoding], list[str]] | None = None
    """What writes the answers; the model itself, where not given."""
    look: Callable[[Batch], None] | None = None
    """Is shown every batch of prompts before it is answered."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Clips that could not be answered, and why."""

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
        texts = (self.generate or self.model.generate)(batch, self.decoding)
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
                    self.failures.append((dataset.clips[index].name, str(error)))
                    logger.warning("%s", error)
            if batch:
                yield from self.answer([clip for clip, _ in batch], [features for _, features in batch], kind)


def load_model(config: Config, checkpoint: Path) -> AffectGPT:
    """Return the model of a checkpoint on its device, in bfloat16 where a GPU can.

    config: what the checkpoint was trained with, and the wanted `inference` section. Raises ValueError when the
    checkpoint does not fit, the device does not exist, or 4 bits are asked for where they cannot be.
    """
    device = inference_device(config.inference)
    if config.model.load_in_4bit and device.type != "cuda":
        raise ValueError(
            f"model.load_in_4bit: expected answers by backend hf on a GPU, found backend {config.inference.backend} on "
            f"{device}; set it to False"
        )
    if device.index is not None:
        torch.cuda.set_device(device)  # where weights in 4 bits are loaded to
    on_gpu = device.type == "cuda" or (config.inference.backend == "vllm" and torch.cuda.is_available())
    half = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    trained = [LAYOUTS[section.face_or_frame] for section in config.datasets.values()]
    model = build_affectgpt(config.model, trained, torch.bfloat16 if half else torch.float32)
    exact = not half and not config.model.load_in_4bit
    use_checkpoint(model, checkpoint, merge=exact and config.inference.backend == "hf")
    return model.to(device).eval()


def use_checkpoint(model: AffectGPT, checkpoint: Path, merge: bool | None = None) -> None:
    """Load the weights of a checkpoint into a model that is to answer (raises ValueError when they do not fit).

    merge: add the adapter to the weights that it adapts, which saves a third of the time; by default where the
    checkpoint before was merged. In bfloat16 the sum would be rounded, and answers would differ.
    """
    layer = next(module for module in model.llm.modules() if isinstance(module, LoraLayer))
    merge = layer.merged if merge is None else merge
    if layer.merged:
        model.llm.unmerge_adapter()
    load_weights(checkpoint, model)
    if merge:
        model.llm.merge_adapter()


def load_answerer(config: Config, checkpoint: Path, layout: str) -> Answerer:
    """Return the model of a checkpoint on its device, ready to answer in `layout` (raises what its parts raise)."""
    check_layout(config, checkpoint, layout)
    return Answerer(load_model(config, checkpoint), config, layout)


def check_layout(config: Config, checkpoint: Path, layout: str) -> None:
    """Raise ValueError where a checkpoint was never trained on a stream of the layout."""
    trained = [LAYOUTS[section.face_or_frame] for section in config.datasets.values()]
    known = {stream for each in trained for stream in each.branches}
    unknown = [stream for stream in LAYOUTS[layout].branches if stream not in known]
    if unknown or (LAYOUTS[layout].fused and not any(each.fused for each in trained)):
        names = ", ".join(section.face_or_frame for section in config.datasets.values())
        raise ValueError(f"{checkpoint}: expected a layout like those it was trained on ({names}), found {layout}")


def inference_device(inference: InferenceConfig) -> torch.device:
    """Return the configured device; `gpu` is the CPU on a machine that has none, for users' files always name one.

    With backend vllm it is the CPU, since vLLM takes the GPU. Raises ValueError for a GPU that does not exist.
    """
    if inference.backend == "vllm":
        return torch.device("cpu")
    if inference.gpu is None or inference.device != "auto":
        return pick_device(inference.device, "inference.device")
    if not torch.cuda.is_available():
        logger.info("inference.gpu: %d, but this machine has no GPU: answering on the CPU", inference.gpu)
        return torch.device("cpu")
    return pick_device(f"cuda:{inference.gpu}", "inference.gpu")


def check_features(dataset: ClipDataset) -> None:
    """Raise FeatureError where all clips lack a stream, or no array of the first clips that have one can be read.

    That shows a folder of another encoder, sampling or width before the first batch; a clip that is bad by itself
    is left to `Answerer.answer_dataset`.
    """
    names = [clip.name for clip in dataset.clips]
    for spec in dataset.specs.values():
        missing = set(dataset.store.missing(spec, names))
        there = [name for name in names if name not in missing]
        if names and not there:
            dataset.check()
        errors = []
        for name in there[:FIRST_CLIPS]:
            try:
                dataset.store.read(spec, name)
                break
            except FeatureError as error:
                errors.append(error)
        else:
            if errors:
                raise errors[0]


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
