"""AffectGPT with action units: streams become tokens, tokens enter the prompt, the language model answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from affect.core.layouts import Layout
from affect.core.schema import PLACEHOLDERS, Batch, Modality
from affect.data.config import ModelConfig
from affect.models.fusion import AttentionPreFusion, Branch, FeatureNorm, QFormerPreFusion
from affect.models.llm import answer_loss, load_llm, load_tokenizer
from affect.models.splice import splice

KIND = {
    Modality.FACE: "video",
    Modality.FRAME: "video",
    Modality.AUDIO: "audio",
    Modality.AU: "au",
    Modality.IMAGE: "image",
}
"""Stream -> the branch that reads it: faces and frames share one, as released checkpoints have it."""


@dataclass(frozen=True)
class Decoding:
    """How answers are generated; greedy unless `do_sample`."""

    max_new_tokens: int = 256
    do_sample: bool = False
    top_p: float = 0.9
    temperature: float = 1.0


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
        self.branches = nn.ModuleDict(_branches(config, layouts, embeddings.shape[1]))
        self.fused = _fused_streams(layouts)
        self.fusion = _pre_fusion(config, self.fused, embeddings.shape[1])
        deviation = embeddings.detach().float().std() if config.normalize_tokens else torch.tensor(0.0)
        self.register_buffer("token_scale", deviation)
        self.placeholder_ids = {
            stream: tokenizer.convert_tokens_to_ids(token) for stream, token in PLACEHOLDERS.items()
        }
        self._freeze()

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the answers' tokens."""
        return answer_loss(self.llm, self.embed(batch), batch.attention_mask, batch.labels)

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> list[str]:
        """Return the answer text of each row of a batch of prompts, without the prompt."""
        sampling = {"top_p": decoding.top_p, "temperature": decoding.temperature} if decoding.do_sample else {}
        ids = self.llm.generate(
            inputs_embeds=self.embed(batch),
            attention_mask=batch.attention_mask,
            max_new_tokens=decoding.max_new_tokens,
            do_sample=decoding.do_sample,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            **sampling,
        )
        # an answer ends at the first mark of a new turn, should the model go on after it
        return [text.split("###")[0].strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def embed(self, batch: Batch) -> Tensor:
        """Return the prompt embeddings [B, L, E] with every stream's tokens in place."""
        special = torch.tensor(list(self.placeholder_ids.values()), device=batch.input_ids.device)
        # placeholders have no row in the embedding table: any row will do until the tokens replace it
        ids = batch.input_ids.masked_fill(torch.isin(batch.input_ids, special), 0)
        embeddings = self.llm.get_input_embeddings()(ids)
        for stream, (tokens, rows) in self.tokens(batch).items():
            embeddings = splice(embeddings, batch.input_ids, self.placeholder_ids[stream], tokens, rows)
        return embeddings

    def tokens(self, batch: Batch) -> dict[Modality, tuple[Tensor, Tensor]]:
        """Return stream -> (tokens [N, Q, E], which rows of the batch they belong to [B]).

        Only streams that the prompts have placeholders for, and rows where they are there.
        """
        features = self._features(batch)
        tokens = {}
        for stream, placeholder in self.placeholder_ids.items():
            rows = (batch.input_ids == placeholder).any(dim=1)
            if not rows.any():
                continue
            if stream == Modality.MULTI:
                made = self.fusion(*self._fused(features, batch.masks, rows))
            else:
                made = self.branches[KIND[stream]](features[stream][rows], batch.masks[stream][rows])
            tokens[stream] = (self._scale(made), rows)
        return tokens

    @torch.no_grad()
    def attention_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the pre-fusion's queries looked at: kind -> [layers, N, heads, Q, T].

        N counts the rows of the batch whose prompts show fused tokens; weights of padding are 0.
        Raises ValueError when the pre-fusion is no Q-Former.
        """
        if not isinstance(self.fusion, QFormerPreFusion):
            raise ValueError(f"multi_fusion_type {self.config.multi_fusion_type!r} has no attention maps; use qformer")
        rows = (batch.input_ids == self.placeholder_ids[Modality.MULTI]).any(dim=1)
        return self.fusion.attention_maps(*self._fused(self._features(batch), batch.masks, rows))

    def attention_of_clips(self, batch: Batch) -> list[dict[Modality, Tensor]]:
        """Return for each row of a batch stream -> what the pre-fusion's queries looked at [layers, heads, Q, T].

        T is the stream's own length, 0 where the clip has none of it; the dict is empty where the prompt
        shows no fused tokens. Raises ValueError when the pre-fusion is no Q-Former.
        """
        maps = self.attention_maps(batch)
        shown = (batch.input_ids == self.placeholder_ids[Modality.MULTI]).any(dim=1).nonzero().flatten().tolist()
        clips: list[dict[Modality, Tensor]] = [{} for _ in batch.names]
        for place, row in enumerate(shown):
            for stream in self.fused:
                if KIND[stream] in maps:
                    clips[row][stream] = maps[KIND[stream]][:, place][..., batch.masks[stream][row]]
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
        read = {KIND[stream]: stream for stream in self.fused if KIND[stream] in self.fusion.projections}
        return (
            {kind: features[stream][rows] for kind, stream in read.items()},
            {kind: masks[stream][rows] for kind, stream in read.items()},
        )

    def _scale(self, tokens: Tensor) -> Tensor:
        if not self.config.normalize_tokens:
            return tokens
        return nn.functional.layer_norm(tokens, tokens.shape[-1:]) * self.token_scale

    def _freeze(self) -> None:
        parts = {kind: self.branches[kind] for kind in self.branches}
        if self.fusion is not None:
            parts["multi"] = self.fusion
        for kind, part in parts.items():
            if kind == "image":  # a linear layer, for which users' files have no switch
                continue
            proj = "llama_proj" if kind == "multi" else "proj"
            frozen_proj = getattr(self.config, f"frozen_{kind}_{proj}")
            frozen_reader = getattr(self.config, f"frozen_{kind}_Qformer")
            for name, weight in part.named_parameters():
                weight.requires_grad_(not (frozen_proj if name.startswith("proj.") else frozen_reader))


def build_affectgpt(
    config: ModelConfig,
    layouts: Iterable[Layout],
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
) -> AffectGPT:
    """Return the model for some layouts, with its language model loaded (raises ValueError when it cannot be)."""
    llm = load_llm(config, dtype, gradient_checkpointing)
    return AffectGPT(config, layouts, llm, load_tokenizer(config.llama_model))


def fusion_shapes(config: ModelConfig, layouts: Iterable[Layout], llm_dim: int) -> dict[str, torch.Size]:
    """Return name -> shape of the weights that the branches and the pre-fusion of some layouts have."""
    layouts = list(layouts)
    with torch.device("meta"):  # no memory, no numbers
        parts = nn.ModuleDict({"branches": nn.ModuleDict(_branches(config, layouts, llm_dim))})
        if fusion := _pre_fusion(config, _fused_streams(layouts), llm_dim):
            parts["fusion"] = fusion
    return {name: weight.shape for name, weight in parts.named_parameters()}


def _branches(config: ModelConfig, layouts: list[Layout], llm_dim: int) -> dict[str, Branch]:
    branches = {}
    for stream in dict.fromkeys(stream for layout in layouts for stream in layout.branches):
        kind = KIND[stream]
        fusion_type = getattr(config, f"{kind}_fusion_type")
        queries = getattr(config, f"num_{kind}_query_token")
        branches[kind] = Branch(kind, fusion_type, config.feature_dim(stream), queries, llm_dim, config)
    return branches


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
        return QFormerPreFusion(dims, config.num_multi_query_token, llm_dim, config)
    return AttentionPreFusion(dims, config.num_multi_query_token, llm_dim)
