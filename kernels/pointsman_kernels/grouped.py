"""The grouped matrix product that both halves of an expert share, in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional

if TYPE_CHECKING:
    from pointsman_kernels.plan import DispatchPlan


def check_weight(
    name: str,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    plan: DispatchPlan,
    *,
    inputs: torch.Tensor,
    transposed: bool,
) -> int:
    """Check an expert weight against its input and return its number of output columns.

    Raises:
        ValueError: the weight, its bias, its dtype or the input does not fit.
    """
    layout = "[E, in, out]" if transposed else "[E, out, in]"
    if weight.ndim != 3 or weight.shape[0] != plan.num_experts:
        message = (
            f"{name} has shape {tuple(weight.shape)}; allowed is {layout} with "
            f"E = {plan.num_experts}"
        )
        raise ValueError(message)
    width_in, width_out = weight.shape[1:] if transposed else (weight.shape[2], weight.shape[1])
    if inputs.ndim != 2 or inputs.shape[1] != width_in:
        message = (
            f"{name} takes {width_in} columns ({layout}, shape {tuple(weight.shape)}), its input "
            f"has shape {tuple(inputs.shape)}; check `transposed`"
        )
        raise ValueError(message)
    if weight.dtype != inputs.dtype:
        message = f"{name} is {weight.dtype}, its input {inputs.dtype}; they must be equal"
        raise ValueError(message)
    if bias is not None and bias.shape != (plan.num_experts, width_out):
        message = (
            f"the bias of {name} has shape {tuple(bias.shape)}; allowed is "
            f"[{plan.num_experts}, {width_out}]"
        )
        raise ValueError(message)
    return int(width_out)


def grouped_linear_reference(
    rows: torch.Tensor,
    weight: torch.Tensor,
    plan: DispatchPlan,
    *,
    bias: torch.Tensor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """One product for each expert that has rows.

    Args:
        rows: [S, in], in the plan's order.
        weight: [E, out, in], or [E, in, out] where ``transposed``.
        plan: whose rows are whose.
        bias: [E, out].
        transposed: the weight's layout.

    Returns:
        [S, out]; the rows of dropped slots are zero.
    """
    width = weight.shape[2] if transposed else weight.shape[1]
    bounds = plan.offsets.tolist()
    parts: list[torch.Tensor] = []
    for expert in range(plan.num_experts):
        begin, end = bounds[expert], bounds[expert + 1]
        if begin == end:
            continue
        matrix = weight[expert].t() if transposed else weight[expert]
        vector = None if bias is None else bias[expert]
        parts.append(functional.linear(rows[begin:end], matrix, vector))
    if bounds[-1] < rows.shape[0]:
        parts.append(rows.new_zeros(rows.shape[0] - bounds[-1], width))
    if not parts:
        return rows.new_zeros(0, width)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
