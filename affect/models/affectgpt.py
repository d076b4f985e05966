"""AffectGPT with action units: streams become tokens, tokens enter the prompt, the language model answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from affect.core.layouts import Layout
from affect.core.schema import Batch, Modality
from affect.data.config import ModelConfig
from affect.models.fusion import (
    POSITIONS,
    AttentionBranch,
    AttentionPreFusion,
    FeatureNorm,
    MeanBranch,
    QFormerBranch,
    QFormerPreFusion,
    TokenBranch,
)
from affect.models.llm import answer_loss, load_llm, load_tokenizer
from affect.models.qformer import QFormerSize
from affect.models.splice import splice

KIND = {
    Modality.FACE: "video",
    Modality.FRAME: "video",
    Modality.AUDIO: "audio",
    Modality.AU: "au",
    Modality.IMAGE: "image",
}
"""Stream -> the branch that reads it: faces and frames share one, as released checkpoints have it."""


class Reading(NamedTuple):
    """How a kind of stream, or several at once, become tokens."""

    fusion_type: str
    queries: int
    frozen: bool = False
    """Whether what reads the features stays as it is."""
    frozen_proj: bool = False
    """Whether the projection into the language model does."""


def readings(c: ModelConfig) -> dict[str, Reading]:
    """Return kind of stream, and multi for the pre-fusion -> how it is read; users' files cannot freeze image."""
    return {
        "multi": Reading(
            c.multi_fusion_type, c.num_multi_query_token, c.frozen_multi_Qformer, c.frozen_multi_llama_proj
        ),
        "video": Reading(c.video_fusion_type, c.num_video_query_token, c.frozen_video_Qformer, c.frozen_video_proj),
        "audio": Reading(c.audio_fusion_type, c.num_audio_query_token, c.frozen_audio_Qformer, c.frozen_audio_proj),
        "au": Reading(c.au_fusion_type, c.num_au_query_token, c.frozen_au_Qformer, c.frozen_au_proj),
        "image": Reading(c.image_fusion_type, c.num_image_query_token),
    }


@dataclass(frozen=True)
class Decoding:
    """How answers are generated; greedy unless `do_sample`."""

    max_new_tokens: int = 256
    do_sample: bool = False
    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 42
    """What sampling draws from, together with the clips' names."""


class AffectGPT(nn.Module):
    """Feature streams and a prompt in, an answer out (or, in training, the answer's loss)."""

    def __init__(
        self, config: ModelConfig, layouts: Iterable[Layout], llm: nn.Module, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Build branches and pre-fusion for the streams of `layouts` around a language model."""
        super().__init__()
        self.config, self.llm, self.tokenizer = config, llm, tokenizer
        embeddings = llm.get_input_embeddings().weight
        layouts = list(layouts)
        streams = list(dict.fromkeys(stream for layout in layouts for stream in layout.needed))
        self.norms = nn.ModuleDict(
            {stream: FeatureNorm(config.feature_dim(stream)) for stream in streams if config.standardize_features}
        )
        parts = dict(fusion_parts(config, layouts, embeddings.shape[1]))
        self.branches, self.fusion = parts["branches"], parts.get("fusion")
        read = self.fusion.projections if self.fusion else {}
        self.fused = {KIND[stream]: stream for stream in _fused_streams(layouts) if KIND[stream] in read}
        deviation = embeddings.detach().float().std() if config.normalize_tokens else torch.tensor(0.0)
        self.register_buffer("token_scale", deviation)
        self._freeze()

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the answers' tokens."""
        return answer_loss(self.llm, self.embed(batch), batch.attention_mask, batch.labels, batch.answers)

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> list[str]:
        """Return the answer text of each row of a batch of prompts, without the prompt.

        What is sampled depends on the seed and on the clips of the batch, not on what was answered before.
        """
        settings = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            do_sample=decoding.do_sample,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        if decoding.do_sample:
            # the library's own choice would be the 50 likeliest tokens
            settings.update(top_p=decoding.top_p, temperature=decoding.temperature, top_k=0)
            digest = hashlib.sha256("\0".join([str(decoding.seed), *batch.names]).encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7]))
        embeddings, mask = self.embed(batch), batch.attention_mask
        ids = self.llm.generate(inputs_embeds=embeddings, attention_mask=mask, generation_config=settings)
        # an answer ends at the first mark of a new turn, should the model go on after it
        return [text.split("###")[0].strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def embed(self, batch: Batch) -> Tensor:
        """Return the prompt embeddings [B, L, E] with every stream's tokens in place."""
        ids = batch.input_ids
        if batch.places:  # placeholders have no row in the embedding table: any row will do
            places = torch.cat([places.flatten() for places in batch.places.values()])
            ids = ids.flatten().index_fill(0, places, 0).view_as(ids)
        return splice(self.llm.get_input_embeddings()(ids), self.tokens(batch), batch.places)

    def tokens(self, batch: Batch) -> dict[Modality, Tensor]:
        """Return stream -> tokens [N, Q, E] of the N rows whose prompts show it."""
        features = self._features(batch)
        tokens = {}
        for stream, rows in batch.rows.items():
            if stream == Modality.MULTI:
                made = self.fusion(*self._fused(features, batch.masks, rows))
            else:
                branch = self.branches[KIND[stream]]
                if isinstance(branch, TokenBranch):
                    branch.check(batch.lengths[stream])
                made = branch(features[stream].index_select(0, rows), batch.masks[stream].index_select(0, rows))
            tokens[stream] = self._scale(made)
        return tokens

    @torch.no_grad()
    def attention_of_clips(self, batch: Batch) -> list[dict[Modality, Tensor]]:
        """Return for each row of a batch stream -> what the pre-fusion's queries looked at [layers, heads, Q, T].

        T is the stream's own length, 0 where the clip has none of it; the dict is empty where the prompt
        shows no fused tokens. Raises ValueError when the pre-fusion is no Q-Former.
        """
        if not isinstance(self.fusion, QFormerPreFusion):
            raise ValueError(f"multi_fusion_type {self.config.multi_fusion_type!r} has no attention maps; use qformer")
        clips: list[dict[Modality, Tensor]] = [{} for _ in batch.names]
        if (rows := batch.rows.get(Modality.MULTI)) is not None:
            maps = self.fusion.attention_maps(*self._fused(self._features(batch), batch.masks, rows))
            for place, row in enumerate(rows.tolist()):
                for kind, stream in self.fused.items():
                    clips[row][stream] = maps[kind][:, place, ..., : batch.lengths[stream][row]]
        return clips

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return name -> parameter for everything that training moves."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def fusion_state(self) -> dict[str, Tensor]:
        """Return the weights and buffers of everything but the language model."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("llm.")}

    def _features(self, batch: Batch) -> dict[Modality, Tensor]:
        normed = self.norms
        return {stream: normed[stream](x) if stream in normed else x for stream, x in batch.features.items()}

    def _fused(
        self, features: Mapping[Modality, Tensor], masks: Mapping[Modality, Tensor], rows: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return kind -> features and kind -> masks of the streams that the pre-fusion reads, for some rows."""
        return tuple(
            {kind: part[stream].index_select(0, rows) for kind, stream in self.fused.items()}
            for part in (features, masks)
        )

    def _scale(self, tokens: Tensor) -> Tensor:
        if not self.config.normalize_tokens:
            return tokens
        return nn.functional.layer_norm(tokens, tokens.shape[-1:]) * self.token_scale

    def _freeze(self) -> None:
        parts = dict(self.branches) if self.fusion is None else {**self.branches, "multi": self.fusion}
        for kind, part in parts.items():
            reading = readings(self.config)[kind]
            for name, weight in part.named_parameters():
                weight.requires_grad_(not (reading.frozen_proj if name.startswith("proj.") else reading.frozen))


def build_affectgpt(
    config: ModelConfig,
    layouts: Iterable[Layout],
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
) -> AffectGPT:
    """Return the model for some layouts, with its language model loaded (raises ValueError when it cannot be)."""
    llm = load_llm(config, dtype, gradient_checkpointing)
    return AffectGPT(config, layouts, llm, load_tokenizer(config.llama_model))


def fusion_parts(config: ModelConfig, layouts: Iterable[Layout], llm_dim: int) -> nn.ModuleDict:
    """Return the branches of some layouts' streams and, where they fuse any, the pre-fusion: branches and fusion."""
    layouts = list(layouts)
    streams = dict.fromkeys(stream for layout in layouts for stream in layout.branches)
    branches = {KIND[each]: _branch(KIND[each], config.feature_dim(each), llm_dim, config) for each in streams}
    fusion = _pre_fusion(config, _fused_streams(layouts), llm_dim)
    return nn.ModuleDict({"branches": nn.ModuleDict(branches)} | ({"fusion": fusion} if fusion else {}))


def fusion_shapes(config: ModelConfig, layouts: Iterable[Layout], llm_dim: int) -> dict[str, torch.Size]:
    """Return name -> shape of the weights of `fusion_parts`."""
    with torch.device("meta"):  # no memory, no numbers
        parts = fusion_parts(config, layouts, llm_dim)
    return {name: weight.shape for name, weight in parts.named_parameters()}


def _branch(kind: str, dim: int, llm_dim: int, config: ModelConfig) -> nn.Module:
    reading = readings(config)[kind]
    match reading.fusion_type:
        case "qformer":
            return QFormerBranch(dim, llm_dim, reading.queries, POSITIONS[kind], _qformer_size(config))
        case "attention":
            keeps_single = kind == "video" and not config.score_single_picture
            return AttentionBranch(dim, llm_dim, reading.queries, keeps_single)
        case "mean":
            return MeanBranch(dim, llm_dim, reading.queries)
        case "token":
            return TokenBranch(dim, llm_dim, reading.queries)


def _qformer_size(config: ModelConfig) -> QFormerSize:
    return QFormerSize(
        config.qformer_hidden_size, config.qformer_layers, config.qformer_heads, config.qformer_intermediate_size
    )


def _fused_streams(layouts: list[Layout]) -> tuple[Modality, ...]:
    fused = {layout.fused for layout in layouts if layout.fused}
    if len(fused) > 1:
        found = " and ".join("+".join(streams) for streams in sorted(fused))
        raise ValueError(f"face_or_frame: expected layouts that fuse the same streams in one model, found {found}")
    return fused.pop() if fused else ()


def _pre_fusion(
    config: ModelConfig, fused: tuple[Modality, ...], llm_dim: int
) -> QFormerPreFusion | AttentionPreFusion | None:
    dims = {KIND[stream]: config.feature_dim(stream) for stream in fused}
    if not dims:
        return None
    if config.multi_fusion_type == "attention" or not config.fuse_au:
        dims.pop("au", None)  # attention reads two streams; AU keeps its own branch
    if config.multi_fusion_type == "qformer":
        return QFormerPreFusion(dims, llm_dim, config.num_multi_query_token, _qformer_size(config))
    return AttentionPreFusion(dims, llm_dim, config.num_multi_query_token)
