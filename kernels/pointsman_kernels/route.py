"""Which experts each token goes to, and with what weight."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch


class Scoring(StrEnum):
    """How logits become scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class Routing(NamedTuple):
    """The result of :func:`route`."""

    topk_ids: torch.Tensor
    """[T, k] int64, best first; equal scores go to the lower id."""
    topk_weights: torch.Tensor
    """[T, k] float32."""


def route(
    logits: torch.Tensor,
    top_k: int,
    *,
    scoring: Scoring = Scoring.SOFTMAX,
    renormalize: bool = True,
    scale: float = 1.0,
    correction_bias: torch.Tensor | None = None,
) -> Routing:
    """Choose the top-k experts of each token.

    Softmax over all experts first (Mixtral, Qwen3-MoE), or a sigmoid of each (DeepSeek-V3).

    Args:
        logits: [T, E], any floating dtype; computed in float32.
        top_k: experts a token, 1 to E.
        scoring: softmax or sigmoid.
        renormalize: make each token's weights add up to one.
        scale: factor on the weights, after renormalisation.
        correction_bias: [E] added to the scores for the choice only, not for the weights
            (DeepSeek-V3's load balancing without an auxiliary loss).

    Raises:
        ValueError: a shape or ``top_k`` that does not fit.
    """
    if logits.ndim != 2:
        message = f"logits have shape {tuple(logits.shape)}; allowed is [T, E]: flatten the batch"
        raise ValueError(message)
    experts = logits.shape[1]
    if not 1 <= top_k <= experts:
        message = f"top_k is {top_k}; allowed are 1 to the number of experts, {experts}"
        raise ValueError(message)
    if correction_bias is not None and correction_bias.shape != (experts,):
        message = (
            f"correction_bias has shape {tuple(correction_bias.shape)}; allowed is [{experts}], "
            "one for each expert"
        )
        raise ValueError(message)
    return route_reference(
        logits,
        top_k,
        scoring=scoring,
        renormalize=renormalize,
        scale=scale,
        correction_bias=correction_bias,
    )


def route_reference(
    logits: torch.Tensor,
    top_k: int,
    *,
    scoring: Scoring = Scoring.SOFTMAX,
    renormalize: bool = True,
    scale: float = 1.0,
    correction_bias: torch.Tensor | None = None,
) -> Routing:
    """:func:`route` in plain torch, without the checks."""
    wide = logits.float()
    scores = wide.softmax(dim=-1) if scoring is Scoring.SOFTMAX else wide.sigmoid()  # [T, E]
    keys = scores if correction_bias is None else scores + correction_bias.float()
    # topk leaves the order of equal keys open; a stable sort gives them to the lower id.
    order = torch.sort(keys, dim=-1, descending=True, stable=True).indices
    ids = order[:, :top_k]  # [T, k]
    weights = scores.gather(1, ids)
    if renormalize:
        # Sigmoids of very negative logits can all be zero.
        smallest = torch.finfo(weights.dtype).tiny
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(smallest)
    return Routing(ids.contiguous(), weights * scale)
