"""First half of the experts: gather tokens, multiply, gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_kernels.gate import SWIGLU, Gate, apply_gate
from pointsman_kernels.grouped import check_weight, grouped_linear_reference

if TYPE_CHECKING:
    import torch

    from pointsman_kernels.plan import DispatchPlan


def gate_up(
    x: torch.Tensor,
    weight: torch.Tensor,
    plan: DispatchPlan,
    *,
    gate: Gate = SWIGLU,
    bias: torch.Tensor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """``gate(x[token] @ weight[expert])`` for each row of the plan.

    4*S*H*F flops gated; reads S*H activations and the weights of the experts that have rows.

    Args:
        x: [T, H].
        weight: [E, 2F, H] ([E, F, H] ungated), or with the last two swapped where ``transposed``.
        plan: of T tokens and E experts.
        gate: the non-linearity and how gate and up share the columns.
        bias: [E, 2F] or [E, F].
        transposed: the weight's layout.

    Returns:
        [S, F] in the dtype of ``x``; the rows of dropped slots are unspecified.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    if x.ndim != 2 or x.shape[0] != plan.num_tokens:
        message = (
            f"x has shape {tuple(x.shape)}; allowed is [T, H] with the plan's T = {plan.num_tokens}"
        )
        raise ValueError(message)
    check_weight("gate_up weight", weight, bias, plan, inputs=x, transposed=transposed)
    return gate_up_reference(x, weight, plan, gate=gate, bias=bias, transposed=transposed)


def gate_up_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    plan: DispatchPlan,
    *,
    gate: Gate = SWIGLU,
    bias: torch.Tensor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """:func:`gate_up` in plain torch, without the checks."""
    columns = grouped_linear_reference(
        x[plan.tokens], weight, plan, bias=bias, transposed=transposed
    )
    return apply_gate(columns, gate)
