"""The dispatch plan: which row of the grouped products belongs to which token and expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchPlan:
    """S = T * k slots in the order of their experts.

    Every shape is known from T, k and E alone, so that nothing waits for the device.
    """

    num_tokens: int
    top_k: int
    num_experts: int
    slots: torch.Tensor
    """[S] int64: row -> slot (token * k + position), stable by expert; dropped slots come last."""
    rows: torch.Tensor
    """[S] int64: slot -> row, the inverse."""
    offsets: torch.Tensor
    """[E + 1] int64: expert e owns the rows from offsets[e] up to offsets[e + 1]."""
    kept: torch.Tensor
    """[S] bool by slot: False where the id is no expert's."""

    @property
    def counts(self) -> torch.Tensor:
        """[E] int64: rows of each expert."""
        return self.offsets.diff()

    @property
    def tokens(self) -> torch.Tensor:
        """[S] int64: row -> token."""
        return torch.div(self.slots, self.top_k, rounding_mode="floor")


def plan(topk_ids: torch.Tensor, num_experts: int) -> DispatchPlan:
    """Group slots by expert.

    Ids outside [0, E) are dropped: this one rule gives null experts, a variable number of experts
    a token, padding, and the sentinel of expert parallelism (id == E).

    Args:
        topk_ids: [T, k] of any integer dtype; an id may come twice in a token.
        num_experts: E, at least 1.

    Raises:
        ValueError: ids that are not an integer [T, k] with k >= 1, or no experts.
    """
    if topk_ids.ndim != 2 or topk_ids.shape[1] < 1:
        message = f"topk_ids have shape {tuple(topk_ids.shape)}; allowed is [T, k] with k >= 1"
        raise ValueError(message)
    if topk_ids.is_floating_point() or topk_ids.is_complex() or topk_ids.dtype == torch.bool:
        message = f"topk_ids are {topk_ids.dtype}; allowed are integer dtypes: pass ids, not scores"
        raise ValueError(message)
    if num_experts < 1:
        message = f"num_experts is {num_experts}; allowed is 1 and above"
        raise ValueError(message)
    return plan_reference(topk_ids, num_experts)


def plan_reference(topk_ids: torch.Tensor, num_experts: int) -> DispatchPlan:
    """:func:`plan` in plain torch, without the checks."""
    tokens, top_k = topk_ids.shape
    flat = topk_ids.reshape(-1).long()  # [S]
    kept = (flat >= 0) & (flat < num_experts)
    keys = torch.where(kept, flat, num_experts)
    ordered, slots = torch.sort(keys, stable=True)
    rows = torch.empty_like(slots)
    rows[slots] = torch.arange(slots.numel(), device=slots.device)
    bounds = torch.arange(num_experts + 1, device=slots.device)
    return DispatchPlan(
        num_tokens=tokens,
        top_k=top_k,
        num_experts=num_experts,
        slots=slots,
        rows=rows,
        offsets=torch.searchsorted(ordered, bounds),
        kept=kept,
    )
