"""Fused tokens take the place of the placeholders of a prompt."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from affect.core.schema import PLACEHOLDERS, Modality


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
