"""Answers written by vLLM (extra `vllm`): prompts go in as embeddings, with the fused tokens already in place.

vLLM forms its own batches as answers end (Kwon et al., "Efficient Memory Management for Large Language Model Serving
with PagedAttention", 2023, arXiv:2309.06180). It reads a language model from a folder, so the adapter is merged into
one first, which is kept beside the checkpoints: {run}/merged-{hash of the checkpoint's weights}.
"""

from __future__ import annotations

import logging
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from affect.core.schema import Batch
from affect.core.weights import weights_hash
from affect.models.affectgpt import AffectGPT, Decoding

logger = logging.getLogger(__name__)


class VllmWriter:
    """Writes answers as `AffectGPT.generate` does, on the first GPU that the process sees.

    The model itself may stay on the CPU: it makes the embeddings only. vLLM is started by the first batch.
    """

    def __init__(self, model: AffectGPT, checkpoint: Path, max_new_tokens: int) -> None:
        """Take a model with the weights of a checkpoint (raises ImportError where vllm is not installed)."""
        try:
            import vllm
        except ModuleNotFoundError as error:
            if error.name != "vllm":
                raise
            raise ImportError(
                "inference.backend vllm needs the package vllm, which is not installed; install affect[vllm], or set "
                "inference.backend to hf"
            ) from None
        self._vllm, self._model, self._checkpoint = vllm, model, checkpoint
        self._longest = model.config.max_length + 1 + max_new_tokens  # a prompt begins with a token of its own

    def __call__(self, batch: Batch, decoding: Decoding) -> list[str]:
        """Return the answer text of each row of a batch of prompts."""
        embeddings = self._model.embed(batch)
        shown = batch.attention_mask.bool()  # vLLM knows no padding
        prompts = [{"prompt_embeds": row[mask].cpu()} for row, mask in zip(embeddings, shown, strict=True)]
        sampling = self._vllm.SamplingParams(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature if decoding.do_sample else 0.0,
            top_p=decoding.top_p if decoding.do_sample else 1.0,
            stop_token_ids=[self._model.tokenizer.eos_token_id],
        )
        outputs = self._engine.generate(prompts, sampling, use_tqdm=False)
        return [output.outputs[0].text.split("###")[0].strip() for output in outputs]

    @cached_property
    def _engine(self) -> Any:
        folder = merged_folder(self._model, self._checkpoint)
        return self._vllm.LLM(model=str(folder), enable_prompt_embeds=True, max_model_len=self._longest)


def merged_folder(model: AffectGPT, checkpoint: Path) -> Path:
    """Return the folder of a checkpoint's language model with the adapter merged, made where it is not there."""
    folder = checkpoint.parent / f"merged-{weights_hash(checkpoint)}"
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
