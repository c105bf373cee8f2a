"""Second half of the experts: back to the model's width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_kernels.grouped import check_weight, grouped_linear_reference

if TYPE_CHECKING:
    import torch

    from pointsman_kernels.plan import DispatchPlan


def down(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    plan: DispatchPlan,
    *,
    bias: torch.Tensor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """``hidden @ weight[expert]`` for each row of the plan.

    2*S*H*F flops; reads S*F activations and the weights of the experts that have rows.

    Args:
        hidden: [S, F], in the plan's order.
        weight: [E, H, F], or [E, F, H] where ``transposed``.
        plan: of S slots and E experts.
        bias: [E, H].
        transposed: the weight's layout.

    Returns:
        [S, H] in the dtype of ``hidden``; the rows of dropped slots are unspecified.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    rows = plan.num_tokens * plan.top_k
    if hidden.ndim != 2 or hidden.shape[0] != rows:
        message = f"hidden has shape {tuple(hidden.shape)}; allowed is [S, F] with S = {rows}"
        raise ValueError(message)
    check_weight("down weight", weight, bias, plan, inputs=hidden, transposed=transposed)
    return down_reference(hidden, weight, plan, bias=bias, transposed=transposed)


def down_reference(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    plan: DispatchPlan,
    *,
    bias: torch.Tensor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """:func:`down` in plain torch, without the checks."""
    return grouped_linear_reference(hidden, weight, plan, bias=bias, transposed=transposed)
