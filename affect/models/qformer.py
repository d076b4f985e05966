"""Q-Former: learned queries that read a feature sequence through cross-attention.

Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and
Large Language Models", 2023 (arXiv:2301.12597); the network is the library's own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel


class QFormerSize(NamedTuple):
    """Width, depth and heads of a Q-Former, and the width of its feed-forward layers."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


class QFormer(nn.Module):
    """`queries` learned vectors attend to features [B, T, D] and come back as [B, Q, H]."""

    def __init__(self, feature_dim: int, queries: int, size: QFormerSize) -> None:
        super().__init__()
        self.bert = Blip2QFormerModel._from_config(
            Blip2QFormerConfig(
                hidden_size=size.hidden,
                num_hidden_layers=size.layers,
                num_attention_heads=size.heads,
                intermediate_size=size.intermediate,
                cross_attention_frequency=1,
                encoder_hidden_size=feature_dim,
                use_qformer_text_input=False,
            ),
            attn_implementation="eager",  # the sequences are short, and attention maps can be asked for
        )
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, size.hidden).normal_(std=0.02))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the query states [B, Q, H] for features [B, T, D] under a mask [B, T] (False: not read)."""
        return self._read(features, mask).last_hidden_state

    def attention_maps(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return what each query looked at: [layers, B, heads, Q, T], rows summing to 1."""
        maps = torch.stack(self._read(features, mask, output_attentions=True).cross_attentions)
        return maps[..., : features.shape[1]]

    def _read(self, features: Tensor, mask: Tensor, **options: bool):
        if features.shape[1] == 0:  # where no clip of a batch has anything to read, the library needs a step still
            features, mask = nn.functional.pad(features, (0, 0, 0, 1)), nn.functional.pad(mask, (0, 1))
        # added to the scores as it is; of a mask [B, T] the library would ask whether all is True, and wait
        dtype = self.query_tokens.dtype
        hidden = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return self.bert(
            query_embeds=self.query_tokens.expand(len(features), -1, -1),
            encoder_hidden_states=features,
            encoder_attention_mask=hidden[:, None, None],
            **options,
        )
