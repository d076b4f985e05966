"""Answers written by vLLM (extra `vllm`): prompts go in as embeddings, with the fused tokens already in place.

It reads a language model from a folder, so the adapter is merged into one first, which is kept beside the checkpoints:
{run}/merged-{hash of the checkpoint's weights and of the language model's}.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from functools import cached_property
from pathlib import Path

from affect.core.schema import Batch
from affect.core.vllm_engine import VllmEngine, import_vllm
from affect.core.weights import resolve_weights, source_hash, weights_hash
from affect.models.affectgpt import AffectGPT, Decoding

logger = logging.getLogger(__name__)


class VllmWriter:
    """Writes answers as `AffectGPT.generate` does, on the first GPU that the process sees.

    The model itself may stay on the CPU: it makes the embeddings only. vLLM is started by the first batch.
    """

    def __init__(self, model: AffectGPT, checkpoint: Path, max_new_tokens: int) -> None:
        """Take a model with the weights of a checkpoint (raises ImportError where vllm is not installed)."""
        self._vllm = import_vllm("inference.backend")
        self._model, self._checkpoint = model, checkpoint
        self._longest = model.config.max_length + 1 + max_new_tokens  # a prompt begins with a token of its own

    def __call__(self, batch: Batch, decoding: Decoding) -> list[str]:
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
    """Return the folder of a checkpoint's language model with the adapter merged, made where it is not there."""
    base = resolve_weights(model.config.llama_model)
    parts = (weights_hash(checkpoint), source_hash(base) or base)  # an adapter says nothing without its base
    folder = checkpoint.parent / f"merged-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    logger.info("merging the adapter of %s into %s", checkpoint, folder)
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.llm = model.llm.merge_and_unload()
    model.llm.save_pretrained(temporary)
    model.tokenizer.save_pretrained(temporary)
    temporary.rename(folder)
    return folder
