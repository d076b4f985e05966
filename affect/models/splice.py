"""Fused tokens take the place of the placeholders of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def splice(embeddings: Tensor, input_ids: Tensor, placeholder: int, tokens: Tensor, rows: Tensor) -> Tensor:
    """Return embeddings [B, L, E] whose placeholder positions hold the tokens.

    input_ids: [B, L]; tokens: [N, Q, E], one set for each of the N batch rows that `rows` [B] (bool)
    marks. Raises ValueError unless marked rows hold exactly Q placeholders and the others none.
    """
    places = input_ids == placeholder
    expected = rows * tokens.shape[1]
    if not torch.equal(places.sum(dim=1), expected):
        raise ValueError(
            f"token {placeholder}: expected {expected.tolist()} placeholders in the prompts of this batch, "
            f"found {places.sum(dim=1).tolist()}; prompt file and num_*_query_token must agree"
        )
    return embeddings.masked_scatter(places.unsqueeze(-1), tokens.to(embeddings.dtype))
