"""Each token's experts added up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pointsman_kernels.plan import DispatchPlan


def combine(rows: torch.Tensor, topk_weights: torch.Tensor, plan: DispatchPlan) -> torch.Tensor:
    """Weighted sum of each token's rows, in float32 and always in the order of its slots.

    Rows of dropped slots are never read: whatever is in them, NaN too, leaves no trace.

    Args:
        rows: [S, H], in the plan's order.
        topk_weights: [T, k], any floating dtype.
        plan: of T tokens and k slots each.

    Returns:
        [T, H] in the dtype of ``rows``; zero for a token without experts.

    Raises:
        ValueError: shapes that do not fit the plan.
    """
    slots = plan.num_tokens * plan.top_k
    if rows.ndim != 2 or rows.shape[0] != slots:
        message = f"rows have shape {tuple(rows.shape)}; allowed is [S, H] with S = {slots}"
        raise ValueError(message)
    if topk_weights.shape != (plan.num_tokens, plan.top_k):
        message = (
            f"topk_weights have shape {tuple(topk_weights.shape)}; allowed is "
            f"[{plan.num_tokens}, {plan.top_k}], as the ids have"
        )
        raise ValueError(message)
    return combine_reference(rows, topk_weights, plan)


def combine_reference(
    rows: torch.Tensor, topk_weights: torch.Tensor, plan: DispatchPlan
) -> torch.Tensor:
    """:func:`combine` in plain torch, without the checks."""
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    kept = plan.kept.unsqueeze(1)  # [S, 1]
    values = rows[plan.rows].to(wide)  # [S, H] by slot
    weights = topk_weights.reshape(-1, 1).to(wide)
    # Selected, not multiplied by zero: zero times NaN is NaN.
    weighted = torch.where(kept, values * weights, 0.0)
    shape = (plan.num_tokens, plan.top_k, rows.shape[1])
    return weighted.view(shape).sum(dim=1).to(rows.dtype)
