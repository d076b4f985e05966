"""Q-Former: learned queries that read a feature sequence through cross-attention.

Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and
Large Language Models", 2023 (arXiv:2301.12597); the network is the library's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from affect.data.config import ModelConfig


class QFormer(nn.Module):
    """`queries` learned vectors attend to features [B, T, D] and come back as [B, Q, H]."""

    def __init__(self, feature_dim: int, queries: int, config: ModelConfig) -> None:
        super().__init__()
        self.bert = Blip2QFormerModel._from_config(
            Blip2QFormerConfig(
                hidden_size=config.qformer_hidden_size,
                num_hidden_layers=config.qformer_layers,
                num_attention_heads=config.qformer_heads,
                intermediate_size=config.qformer_intermediate_size,
                cross_attention_frequency=1,
                encoder_hidden_size=feature_dim,
                use_qformer_text_input=False,
            ),
            attn_implementation="eager",  # the sequences are short, and attention maps can be asked for
        )
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, config.qformer_hidden_size).normal_(std=0.02))

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
        return self.bert(
            query_embeds=self.query_tokens.expand(len(features), -1, -1),
            encoder_hidden_states=features,
            encoder_attention_mask=mask.long(),
            **options,
        )
