"""From feature sequences to a few tokens of the language model's width.

A branch reads one stream; `QFormerPreFusion` and `AttentionPreFusion` read several together:
the pre-fusion of Lian et al., "AffectGPT", 2025 (arXiv:2501.16566), with action units beside
face and sound. Rows that are masked out (padding, an absent stream) never count; a mask may be
left out where nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from affect.core.schema import UNMEASURED

POSITIONS = {"video": 32, "audio": 8, "au": 32}
"""Rows of the position tables, as released checkpoints have them."""
Read = tuple[Tensor, Tensor | None]
"""Features [B, T, D] and which of their rows [B, T] are read; without a mask all are."""


class FeatureNorm(nn.Module):
    """Standardises features by the training set's mean and deviation and clamps them at 4 deviations.

    What nobody measured (`UNMEASURED`) counts in neither and becomes the mean.
    """

    LIMIT = 4.0

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def fit(self, rows: Tensor) -> None:
        """Take mean and deviation from rows [N, D]; a constant column keeps deviation 1."""
        known = rows.where(rows > UNMEASURED, rows.new_tensor(float("nan")))
        mean = known.nanmean(dim=0).nan_to_num()
        deviation = (known - mean).square().nanmean(dim=0).sqrt().nan_to_num()
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, features: Tensor) -> Tensor:
        """Return features [B, T, D] standardised."""
        standardised = ((features - self.mean) / self.deviation).clamp(-self.LIMIT, self.LIMIT)
        return standardised.masked_fill(features <= UNMEASURED, 0.0)


class Positions(nn.Module):
    """A learned vector for each step; sequences longer than the table share its rows evenly."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Return features [B, T, D] with their positions added; in [B, T, P, D] the P patches of a step share one."""
        length, rows = features.shape[1], self.table.num_embeddings
        steps = torch.arange(length, device=features.device)
        positions = self.table(steps if length <= rows else steps * rows // length)
        return features + (positions if features.ndim == 3 else positions.unsqueeze(1))


def masked_mean(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean [B, D] of features [B, T, D] over the rows that the mask [B, T] keeps (0 where none)."""
    kept = _explicit(mask, features).unsqueeze(-1).to(features.dtype)
    return (features * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


class QFormer(nn.Module):
    """`queries` learned vectors attend to features [B, T, D] and come back as [B, Q, H].

    Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language
    Models", 2023 (arXiv:2301.12597); the network is the library's own, its `size` as `Blip2QFormerConfig` has it.
    """

    def __init__(self, dim: int, queries: int, size: Mapping[str, int]) -> None:
        super().__init__()
        config = Blip2QFormerConfig(
            **size, cross_attention_frequency=1, encoder_hidden_size=dim, use_qformer_text_input=False
        )
        # the sequences are short, and attention maps can be asked for
        self.bert = Blip2QFormerModel._from_config(config, attn_implementation="eager")
        self.width = config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, self.width).normal_(std=0.02))

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return the query states [B, Q, H] for features [B, T, D] under a mask [B, T] (False: not read)."""
        return self._read(features, mask).last_hidden_state

    def attention_maps(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return what each query looked at: [layers, B, heads, Q, T], rows summing to 1."""
        maps = torch.stack(self._read(features, mask, output_attentions=True).cross_attentions)
        return maps[..., : features.shape[1]]

    def _read(self, features: Tensor, mask: Tensor | None, **options: bool):
        if features.shape[1] == 0:  # where no clip of a batch has anything to read, the library needs a step still
            features, mask = nn.functional.pad(features, (0, 0, 0, 1)), None
        if mask is not None:
            # added to the scores as it is; of a mask [B, T] the library would ask whether all is True, and wait
            hidden = torch.zeros_like(mask, dtype=self.query_tokens.dtype)
            mask = hidden.masked_fill(~mask, torch.finfo(hidden.dtype).min)[:, None, None]
        return self.bert(
            query_embeds=self.query_tokens.expand(len(features), -1, -1),
            encoder_hidden_states=features,
            encoder_attention_mask=mask,
            **options,
        )


class QFormerBranch(nn.Module):
    """One stream as tokens: learned queries read its steps."""

    def __init__(self, dim: int, llm_dim: int, queries: int, positions: int, size: Mapping[str, int]) -> None:
        super().__init__()
        self.positions = Positions(positions, dim)
        self.qformer = QFormer(dim, queries, size)
        self.proj = nn.Linear(self.qformer.width, llm_dim)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return tokens [B, Q, E] for features [B, T, D] ([B, T, P, D]: each of P patches) under a mask [B, T]."""
        return self.proj(self.qformer(*_each_patch(self.positions(features), mask)))


class AttentionBranch(nn.Module):
    """One stream as a token, repeated: the sum of its steps, each times a linear score, without softmax."""

    def __init__(self, dim: int, llm_dim: int, queries: int, keeps_single: bool = False) -> None:
        """keeps_single: a step that is alone stands for itself, as checkpoints trained on stored pictures have it."""
        super().__init__()
        self.queries, self.keeps_single = queries, keeps_single
        self.score = nn.Linear(dim, 1)
        self.proj = nn.Linear(dim, llm_dim)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return tokens [B, Q, E] for features [B, T, D] ([B, T, P, D]: a picture's mean) under a mask [B, T]."""
        features = _mean_patch(features)
        mask, weights = _explicit(mask, features), self.score(features).squeeze(-1)
        if self.keeps_single:
            weights = torch.where(mask.sum(dim=1, keepdim=True) == 1, torch.ones_like(weights), weights)
        summed = (weights * mask).unsqueeze(1).matmul(features)
        return self.proj(summed.squeeze(1)).unsqueeze(1).expand(-1, self.queries, -1)


class MeanBranch(nn.Module):
    """One stream as a token, repeated: the mean of its steps."""

    def __init__(self, dim: int, llm_dim: int, queries: int) -> None:
        super().__init__()
        self.queries = queries
        self.proj = nn.Linear(dim, llm_dim)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return tokens [B, Q, E] for features [B, T, D] ([B, T, P, D]: a picture's mean) under a mask [B, T]."""
        pooled = masked_mean(_mean_patch(features), mask)
        return self.proj(pooled).unsqueeze(1).expand(-1, self.queries, -1)


class TokenBranch(nn.Module):
    """One stream as tokens: each step becomes one, a lone step all of them."""

    def __init__(self, dim: int, llm_dim: int, queries: int) -> None:
        super().__init__()
        self.queries = queries
        self.proj = nn.Linear(dim, llm_dim)

    def check(self, lengths: Sequence[int]) -> None:
        """Raise ValueError where a clip that shows the stream has neither one step nor Q."""
        if any(length not in (0, 1, self.queries) for length in lengths):
            raise ValueError(
                f"image features: expected 1 row or num_image_query_token ({self.queries}), found {list(lengths)}; "
                "set model.num_image_query_token to the rows, or model.image_fusion_type to mean"
            )

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return tokens [B, Q, E] for features [B, T, D] ([B, T, P, D]: each of P patches) under a mask [B, T]."""
        features, mask = _each_patch(features, mask)
        rows = features[:, :1].expand(-1, self.queries, -1)
        if features.shape[1] > 1:
            rows = torch.where((_explicit(mask, features).sum(dim=1) == 1).view(-1, 1, 1), rows, features)
        return self.proj(rows)


def _each_patch(features: Tensor, mask: Tensor | None) -> Read:
    """Return features [B, T, P, D] and their mask with the patches one after the other: [B, TP, D] and [B, TP]."""
    if features.ndim == 3:
        return features, mask
    return features.flatten(1, 2), None if mask is None else mask.repeat_interleave(features.shape[2], dim=1)


def _mean_patch(features: Tensor) -> Tensor:
    """Return features [B, T, P, D] with the mean of each picture's patches: [B, T, D]."""
    return features.mean(dim=2) if features.ndim == 4 else features


def _explicit(mask: Tensor | None, features: Tensor) -> Tensor:
    """Return the mask [B, T] of features [B, T, D], made where it was left out."""
    return features.new_ones(features.shape[:2], dtype=torch.bool) if mask is None else mask


class QFormerPreFusion(nn.Module):
    """Streams projected to one width, marked by position and stream, concatenated, read by learned queries."""

    def __init__(self, dims: Mapping[str, int], llm_dim: int, queries: int, size: Mapping[str, int]) -> None:
        super().__init__()
        width = max(dims.values())
        self.projections = nn.ModuleDict({kind: nn.Linear(dim, width) for kind, dim in dims.items()})
        self.positions = nn.ModuleDict({kind: Positions(POSITIONS[kind], width) for kind in dims})
        marks = {kind: nn.Parameter(torch.zeros(width).normal_(std=0.02)) for kind in dims}
        self.stream_marks = nn.ParameterDict(marks)
        self.qformer = QFormer(width, queries, size)
        self.proj = nn.Linear(self.qformer.width, llm_dim)

    def forward(self, streams: Mapping[str, Read]) -> Tensor:
        """Return tokens [B, Q, E] for kind -> features [B, T, D] under a mask [B, T]."""
        return self.proj(self.qformer(*self._together(streams)))

    def attention_maps(self, streams: Mapping[str, Read]) -> dict[str, Tensor]:
        """Return kind -> what each query looked at [layers, B, heads, Q, T]; all kinds together sum to 1."""
        maps = self.qformer.attention_maps(*self._together(streams))
        lengths = [streams[kind][0].shape[1] for kind in self.projections]
        return dict(zip(self.projections, maps.split(lengths, dim=-1), strict=True))

    def _together(self, streams: Mapping[str, Read]) -> Read:
        marked = [
            self.positions[kind](projection(streams[kind][0])) + self.stream_marks[kind]
            for kind, projection in self.projections.items()
        ]
        read = [streams[kind] for kind in self.projections]
        whole = all(mask is None for _, mask in read)
        return torch.cat(marked, dim=1), None if whole else torch.cat([_explicit(m, x) for x, m in read], dim=1)


class AttentionPreFusion(nn.Module):
    """The means of video and sound, each weighted by a linear score without softmax, then added."""

    def __init__(self, dims: Mapping[str, int], llm_dim: int, queries: int) -> None:
        super().__init__()
        self.queries = queries
        width = max(dims.values())
        self.projections = nn.ModuleDict({kind: nn.Linear(dim, width) for kind, dim in dims.items()})
        self.mix = nn.Linear(width * len(dims), width)
        self.score = nn.Linear(width, len(dims))
        self.proj = nn.Linear(width, llm_dim)

    def forward(self, streams: Mapping[str, Read]) -> Tensor:
        """Return tokens [B, Q, E] for kind -> features [B, T, D] under a mask [B, T]."""
        means = []
        for kind, projection in self.projections.items():
            features, mask = streams[kind]
            present = _explicit(mask, features).any(dim=1, keepdim=True)
            means.append(projection(masked_mean(features, mask)) * present)
        stacked = torch.stack(means, dim=1)
        weights = self.score(self.mix(torch.cat(means, dim=1)))
        fused = (weights.unsqueeze(-1) * stacked).sum(dim=1)
        return self.proj(fused).unsqueeze(1).expand(-1, self.queries, -1)
