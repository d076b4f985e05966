"""AffectGPT with action units: streams become tokens, tokens enter the prompt, the language model answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from affect.core.layouts import Layout
from affect.core.schema import PLACEHOLDERS, Batch, Modality
from affect.data.collate import Collator
from affect.data.config import InferenceConfig, ModelConfig
from affect.models.fusion import (
    POSITIONS,
    AttentionBranch,
    AttentionPreFusion,
    FeatureNorm,
    MeanBranch,
    QFormerBranch,
    QFormerPreFusion,
    Read,
    TokenBranch,
)
from affect.models.llm import answer_loss, load_llm, load_tokenizer

KIND = {
    Modality.FACE: "video",
    Modality.FRAME: "video",
    Modality.AUDIO: "audio",
    Modality.AU: "au",
    Modality.IMAGE: "image",
}
"""Stream -> the branch that reads it: faces and frames share one, as released checkpoints have it."""


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

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the answers' tokens."""
        return answer_loss(self.llm, self.embed(batch), batch.attention_mask, batch.labels, batch.answers)

    def collator(self, new_tokens: int = 0) -> Collator:
        """Return what makes batches for training, or prompts with room for an answer of `new_tokens`."""
        context = getattr(self.llm.config, "max_position_embeddings", None)
        limits = {"context": context, "room": new_tokens} if context else {}
        return Collator(self.tokenizer, self.config.max_length, generation=new_tokens > 0, **limits)

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: InferenceConfig) -> list[str]:
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
        read, tokens = self._standardised(batch), {}
        for stream, rows in batch.rows.items():
            if stream == Modality.MULTI:
                made = self.fusion(self._fused(read, rows))
            else:
                branch = self.branches[KIND[stream]]
                if isinstance(branch, TokenBranch):
                    branch.check(batch.lengths[stream])
                made = branch(*_some(read[stream], rows))
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
            maps = self.fusion.attention_maps(self._fused(self._standardised(batch), rows))
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

    def _standardised(self, batch: Batch) -> dict[Modality, Read]:
        """Return stream -> features [B, T, D] and their mask [B, T], left out where all are whole."""
        read = {}
        for stream, x in batch.features.items():
            whole = all(length == x.shape[1] for length in batch.lengths[stream])
            read[stream] = self.norms[stream](x) if stream in self.norms else x, None if whole else batch.masks[stream]
        return read

    def _fused(self, read: Mapping[Modality, Read], rows: Tensor) -> dict[str, Read]:
        """Return kind -> what the pre-fusion reads of it, for some rows."""
        return {kind: _some(read[stream], rows) for kind, stream in self.fused.items()}

    def _scale(self, tokens: Tensor) -> Tensor:
        if not self.config.normalize_tokens:
            return tokens
        return nn.functional.layer_norm(tokens, tokens.shape[-1:]) * self.token_scale


def _some(read: Read, rows: Tensor) -> Read:
    return tuple(part if part is None else part.index_select(0, rows) for part in read)


def splice(embeddings: Tensor, tokens: Mapping[Modality, Tensor], places: Mapping[Modality, Tensor]) -> Tensor:
    """Return embeddings [B, L, E] with stream -> tokens [N, Q, E] at the streams' places [N, Q] in [B * L].

    Raises ValueError where a stream has another number of tokens than of places.
    """
    for stream, made in tokens.items():
        if made.shape[:2] != places[stream].shape:
            raise ValueError(
                f"{PLACEHOLDERS[stream]}: expected {made.shape[1]} placeholders in a prompt, found "
                f"{places[stream].shape[1]}; prompt file and num_*_query_token must agree"
            )
    if not tokens:
        return embeddings
    where = torch.cat([places[stream].flatten() for stream in tokens])
    what = torch.cat([made.to(embeddings.dtype).flatten(0, 1) for made in tokens.values()])
    return embeddings.flatten(0, 1).index_copy(0, where, what).view_as(embeddings)


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


def _branch(kind: str, dim: int, llm_dim: int, c: ModelConfig) -> nn.Module:
    fusion_type, queries, frozen, frozen_proj = {
        "video": (c.video_fusion_type, c.num_video_query_token, c.frozen_video_Qformer, c.frozen_video_proj),
        "audio": (c.audio_fusion_type, c.num_audio_query_token, c.frozen_audio_Qformer, c.frozen_audio_proj),
        "au": (c.au_fusion_type, c.num_au_query_token, c.frozen_au_Qformer, c.frozen_au_proj),
        "image": (c.image_fusion_type, c.num_image_query_token, False, False),
    }[kind]
    match fusion_type:
        case "qformer":
            branch = QFormerBranch(dim, llm_dim, queries, POSITIONS[kind], _qformer_size(c))
        case "attention":
            branch = AttentionBranch(dim, llm_dim, queries, kind == "video" and not c.score_single_picture)
        case "mean":
            branch = MeanBranch(dim, llm_dim, queries)
        case "token":
            branch = TokenBranch(dim, llm_dim, queries)
    return _freeze(branch, frozen, frozen_proj)


def _pre_fusion(
    c: ModelConfig, fused: tuple[Modality, ...], llm_dim: int
) -> QFormerPreFusion | AttentionPreFusion | None:
    dims = {KIND[stream]: c.feature_dim(stream) for stream in fused}
    if not dims:
        return None
    if c.multi_fusion_type == "attention" or not c.fuse_au:
        dims.pop("au", None)  # attention reads two streams; AU keeps its own branch
    if c.multi_fusion_type == "qformer":
        fusion = QFormerPreFusion(dims, llm_dim, c.num_multi_query_token, _qformer_size(c))
    else:
        fusion = AttentionPreFusion(dims, llm_dim, c.num_multi_query_token)
    return _freeze(fusion, c.frozen_multi_Qformer, c.frozen_multi_llama_proj)


def _freeze(part: nn.Module, frozen: bool, frozen_proj: bool) -> nn.Module:
    """Return a part that training leaves as it is where the configuration says so: its reading, or its projection."""
    for name, weight in part.named_parameters():
        weight.requires_grad_(not (frozen_proj if name.startswith("proj.") else frozen))
    return part


def _qformer_size(c: ModelConfig) -> dict[str, int]:
    return {
        "hidden_size": c.qformer_hidden_size,
        "num_hidden_layers": c.qformer_layers,
        "num_attention_heads": c.qformer_heads,
        "intermediate_size": c.qformer_intermediate_size,
    }


def _fused_streams(layouts: list[Layout]) -> tuple[Modality, ...]:
    fused = {layout.fused for layout in layouts if layout.fused}
    if len(fused) > 1:
        found = " and ".join("+".join(streams) for streams in sorted(fused))
        raise ValueError(f"face_or_frame: expected layouts that fuse the same streams in one model, found {found}")
    return fused.pop() if fused else ()
