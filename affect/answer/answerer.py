"""Clips with features and a question in, answers and what they rest on out; those of data sets go to files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from affect.answer.attention import AttentionWriter
from affect.answer.files import (
    REASONING,
    Answer,
    answer_settings,
    answers_path,
    resume_answers,
    write_answers,
    write_npz,
)
from affect.answer.setup import load_model, use_checkpoint
from affect.core.au_json import AuAnalysis, find_au_json, read_au_json
from affect.core.failures import Failure
from affect.core.files import atomic_folder, locked
from affect.core.layouts import LAYOUTS
from affect.core.schema import STREAM_WORDS, Batch, Clip, Modality
from affect.core.vllm_engine import VllmEngine, import_vllm
from affect.core.weights import resolve_weights, source_hash, weights_hash
from affect.data.config import Config, ConfigError, InferenceConfig
from affect.data.dataset import ClipDataset, check_prompt, make_sample, present_streams, query_tokens
from affect.data.prompts import load_prompts, shown_streams
from affect.features.store import FeatureError
from affect.models.affectgpt import AffectGPT

logger = logging.getLogger(__name__)

FIRST_CLIPS = 8
"""Clips of which one at least must have features that can be read."""
Writer = Callable[[Batch, InferenceConfig], list[str]]
"""What writes the answers to a batch of prompts: `AffectGPT.generate`, or vLLM in its stead."""


@dataclass
class Answerer:
    """A trained model ready to answer in one layout."""

    model: AffectGPT
    config: Config
    layout: str
    writer: Writer
    look: Callable[[Batch], None] | None = None
    """Is shown every batch of prompts before it is answered."""
    failures: list[Failure] = field(default_factory=list)
    """Clips that could not be answered."""

    def __post_init__(self) -> None:
        self.prompts = load_prompts(self.config.model.prompt_file)
        self.collator = self.model.collator(self.config.inference.max_new_tokens)

    @torch.no_grad()
    def answer(
        self,
        clips: Sequence[Clip],
        features: Sequence[dict[Modality, np.ndarray]],
        kind: str = REASONING,
        unmeasured: Collection[Modality] = (),
    ) -> list[Answer]:
        """Answer one batch of clips, each with stream -> [T, D] (T is 0 where it has none).

        unmeasured: streams that have no rows because nobody looked for them.
        """
        without = self.config.inference.without
        if Modality.AU in without:
            clips = [replace(clip, nonverbal="") for clip in clips]
        features = [{s: x[:0] if s in without else x for s, x in arrays.items()} for arrays in features]
        tokens = query_tokens(self.config.model)
        samples = [
            make_sample(clip, arrays, self.layout, self.prompts, kind, tokens)
            for clip, arrays in zip(clips, features, strict=True)
        ]
        batch = self.collator(samples).to(next(self.model.parameters()).device)
        if self.look:
            self.look(batch)
        texts = self.writer(batch, self.config.inference)
        return [
            Answer(
                name=clip.name,
                dataset=clip.dataset,
                question=self.prompts.question(kind),
                answer=text,
                **self._states(clip, arrays, unmeasured),
                subtitle=clip.subtitle,
                words_left_out=left_out,
                nonverbal=clip.nonverbal or "",
                labels=list(clip.labels),
            )
            for clip, arrays, text, left_out in zip(clips, features, texts, batch.left_out, strict=True)
        ]

    def _states(
        self, clip: Clip, arrays: Mapping[Modality, np.ndarray], unmeasured: Collection[Modality]
    ) -> dict[str, list[str]]:
        """Return what an answer says of the layout's streams: which were shown, and why others were not."""
        present = present_streams(clip, arrays)
        missing = LAYOUTS[self.layout].missing(present)
        unknown = {*unmeasured, *([Modality.AU] if Modality.AU not in arrays and clip.nonverbal is None else [])}
        withheld = [stream for stream in missing if stream in self.config.inference.without]
        states = {
            "streams": shown_streams(self.layout, present, told=bool(clip.nonverbal)),
            "missing": missing,
            "unmeasured": [stream for stream in missing if stream in unknown and stream not in withheld],
            "withheld": withheld,
        }
        return {state: [str(stream) for stream in streams] for state, streams in states.items()}

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


def open_answerer(config: Config, checkpoint: Path, layout: str, attention: Path | None = None) -> Answerer:
    """Return the model of a checkpoint, ready to answer; attention: folder for what the pre-fusion reads."""
    model = load_model(config, checkpoint)
    look = AttentionWriter(model, attention) if attention else None
    return Answerer(model, config, layout, open_writer(config, model, checkpoint), look)


def answer_datasets(
    config: Config,
    checkpoints: Sequence[Path],
    datasets: Sequence[ClipDataset],
    kind: str,
    console: Console,
    overwrite: bool = False,
    attention: bool = False,
    shown: int = 5,
) -> list[Failure]:
    """Answer the clips of data sets that have no answer of a checkpoint yet; return what could not be answered.

    overwrite: make all anew; attention: keep what the pre-fusion read; shown: answers to print, and clips to draw.
    """
    if config.inference.backend == "vllm" and len(checkpoints) > 1:
        raise ConfigError(
            f"inference.backend vllm answers with one checkpoint, found {len(checkpoints)} in inference.test_epochs; "
            "run inference.py once for each test_epoch, or set backend to hf"
        )
    used, failures, model = checkpoints[0], {}, load_model(config, checkpoints[0])
    writer = open_writer(config, model, used)
    for checkpoint, dataset in product(checkpoints, datasets):
        if checkpoint != used:
            use_checkpoint(model, used := checkpoint)
        answerer = Answerer(model, config, dataset.config.face_or_frame, writer)
        check_prompt(dataset, answerer.prompts, kind, query_tokens(config.model), answerer.collator)
        path = answers_path(config.inference.base_root, dataset.name, checkpoint, kind)
        settings = answer_settings(config, dataset.config, checkpoint, answerer.prompts, kind)
        refusal = f"{path}: another process answers into it; wait for it, or give another inference.base_root"
        with locked(path.with_name(f".{path.name}.lock"), refusal):
            done = resume_answers(path, settings, overwrite)
            left = replace(dataset, clips=[clip for clip in dataset.clips if clip.name not in done])
            if attention:
                answerer.look = AttentionWriter(model, path.with_name(f"{checkpoint.name}-attention"), shown)
                answerer.look.count_unseen(done)
            with left.ahead():
                count = write_answers(path, _shown(answerer.answer_dataset(left, kind), left, console, shown))
            write_npz(path)
        before = f" and {len(done)} from before" if done else ""
        console.print(f"{count} answers{before}: {path}", soft_wrap=True)
        failures |= dict.fromkeys(answerer.failures)
    return list(failures)


def _shown(answers: Iterator[Answer], dataset: ClipDataset, console: Console, shown: int) -> Iterator[Answer]:
    """Pass answers on, each with its action units where AU JSON is known; print the first ones."""
    progress, cut = track(answers, f"answering {dataset.name}", total=len(dataset), console=console), 0
    for position, answer in enumerate(progress):
        answer = _with_units_of(dataset, answer)
        cut += bool(answer.words_left_out)
        if position < shown:
            show(console, answer)
        yield answer
    if cut:
        console.print(f"{cut} subtitles are longer than the model reads: the first words_left_out words are left out")


def _with_units_of(dataset: ClipDataset, answer: Answer) -> Answer:
    """Return an answer with the action units of its clip's AU JSON, if there is one."""
    root = dataset.config.mer_factory_output
    try:
        path = find_au_json(root, dataset.name, answer.name) if root else None
        return with_action_units(answer, read_au_json(path)) if path else answer
    except FileNotFoundError:
        return answer
    except ValueError as error:  # the answer does not rest on this file
        logger.warning("%s", error)
        return answer


def show(console: Console, answer: Answer) -> None:
    """Print one answer and what it rests on."""
    console.print(f"[bold]{escape(answer.name)}[/bold]  {escape(answer.answer)}", highlight=False)
    units = ", ".join(f"{unit} {value:.1f}" for unit, value in list(answer.action_units.items())[:6])
    absent = [stream for stream in answer.missing if stream not in {*answer.unmeasured, *answer.withheld}]
    states = {"not in the clip": absent, "not measured": answer.unmeasured, "left out": answer.withheld}
    told = {"shown": answer.streams, **{state: streams for state, streams in states.items() if streams}}
    rests = "; ".join(f"{state}: {_in_words(streams) or 'words only'}" for state, streams in told.items())
    if answer.words_left_out:
        rests += f"; the subtitle but for its first {answer.words_left_out} words, for which there is no room"
    console.print(f"  [dim]{rests}{f'; action units: {units}' if units else ''}[/dim]", highlight=False)


def _in_words(streams: Sequence[str]) -> str:
    return ", ".join(STREAM_WORDS[Modality(stream)] for stream in streams)


def open_writer(config: Config, model: AffectGPT, checkpoint: Path) -> Writer:
    """Return what writes the answers of a checkpoint: the model, or vLLM (raises ImportError where that is not)."""
    if config.inference.backend == "hf":
        return model.generate
    return VllmWriter(model, checkpoint, config.inference.max_new_tokens)


class VllmWriter:
    """Writes answers by vLLM (extra `vllm`) as `AffectGPT.generate` does, on the first GPU that the process sees.

    Prompts go in as embeddings, with the fused tokens already in place; the model that makes them may stay on the CPU.
    vLLM is started by the first batch, and reads a language model from a folder, so the adapter is merged into one.
    """

    def __init__(self, model: AffectGPT, checkpoint: Path, max_new_tokens: int) -> None:
        """Take a model with the weights of a checkpoint (raises ImportError where vllm is not installed)."""
        self._vllm = import_vllm("inference.backend")
        self._model, self._checkpoint = model, checkpoint
        longest = model.config.max_length + 1 + max_new_tokens  # a prompt begins with a token of its own
        self._longest = min(longest, model.collator().context)

    def __call__(self, batch: Batch, decoding: InferenceConfig) -> list[str]:
        """Return the answer text of each row of a batch of prompts."""
        shown = batch.attention_mask.bool()  # vLLM knows no padding
        prompts = [row[mask] for row, mask in zip(self._model.embed(batch), shown, strict=True)]
        sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": decoding.seed}
        stops = [self._model.tokenizer.eos_token_id]
        said = self._engine.answers(
            prompts, decoding.max_new_tokens, stop_token_ids=stops, **(sampling if decoding.do_sample else {})
        )
        return [text.split("###")[0].strip() for text in said]

    @cached_property
    def _engine(self) -> VllmEngine:
        folder = merged_folder(self._model, self._checkpoint)
        return VllmEngine(
            self._vllm, str(folder), "inference.backend vllm", enable_prompt_embeds=True, max_model_len=self._longest
        )


def merged_folder(model: AffectGPT, checkpoint: Path) -> Path:
    """Return the folder of a checkpoint's language model with the adapter merged, made where it is not there.

    It is kept beside the checkpoints: {run}/merged-{hash of the checkpoint's weights and of the language model's}.
    """
    base = resolve_weights(model.config.llama_model)
    parts = (weights_hash(checkpoint), source_hash(base) or base)  # an adapter says nothing without its base
    folder = checkpoint.parent / f"merged-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    logger.info("merging the adapter of %s into %s", checkpoint, folder)
    model.llm = model.llm.merge_and_unload()
    with atomic_folder(folder) as temporary:
        model.llm.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
    return folder
