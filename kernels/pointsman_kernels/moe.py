"""The experts of one MoE layer: plan, gate_up, down, combine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pointsman_kernels.combine import combine
from pointsman_kernels.down import down
from pointsman_kernels.gate import SWIGLU, Gate, apply_gate
from pointsman_kernels.gate_up import gate_up
from pointsman_kernels.plan import plan

if TYPE_CHECKING:
    from pointsman_kernels.calls import ExpertCalls


def fused_moe(
    x: torch.Tensor,
    gate_up_weight: torch.Tensor,
    down_weight: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    *,
    gate: Gate = SWIGLU,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    transposed: bool = False,
    calls: ExpertCalls | None = None,
    layer: int = 0,
) -> torch.Tensor:
    """Send each token through its experts and add up what they say.

    Args:
        x: [T, H].
        gate_up_weight: [E, 2F, H] ([E, F, H] for an ungated gate).
        down_weight: [E, H, F].
        topk_ids: [T, k] integers; ids outside [0, E) are skipped, repeated ids count twice.
        topk_weights: [T, k].
        gate: the non-linearity.
        gate_up_bias: [E, 2F] or [E, F].
        down_bias: [E, H].
        transposed: both weights have their last two dimensions swapped.
        calls: where to count expert calls, under ``layer``.
        layer: this layer's number in ``calls``.

    Returns:
        [T, H] in the dtype of ``x``. The same input gives the same bits.

    Raises:
        ValueError: shapes or dtypes that do not fit; says which and what is allowed.
    """
    if topk_ids.shape[:1] != x.shape[:1]:
        message = (
            f"topk_ids have shape {tuple(topk_ids.shape)}, x {tuple(x.shape)}; "
            "the first dimension of both is the number of tokens"
        )
        raise ValueError(message)
    dispatch = plan(topk_ids, gate_up_weight.shape[0])
    if calls is not None:
        calls.add(layer, dispatch.counts)
    hidden = gate_up(
        x, gate_up_weight, dispatch, gate=gate, bias=gate_up_bias, transposed=transposed
    )
    rows = down(hidden, down_weight, dispatch, bias=down_bias, transposed=transposed)
    return combine(rows, topk_weights, dispatch)


def fused_moe_reference(
    x: torch.Tensor,
    gate_up_weight: torch.Tensor,
    down_weight: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    *,
    gate: Gate = SWIGLU,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """:func:`fused_moe` of the definition, in plain torch: every expert sees every token.

    E/k times the work, and no sorting, gathering or grouping that could be wrong. In the dtype of
    its inputs: float64 inputs give the truth that faster paths are compared with.
    """
    out = torch.zeros_like(x)
    for expert in range(gate_up_weight.shape[0]):
        first = gate_up_weight[expert] if transposed else gate_up_weight[expert].t()
        second = down_weight[expert] if transposed else down_weight[expert].t()
        columns = x @ first
        if gate_up_bias is not None:
            columns = columns + gate_up_bias[expert]
        result = apply_gate(columns, gate) @ second
        if down_bias is not None:
            result = result + down_bias[expert]
        # [T, k] -> [T, 1]: a repeated id counts as often as it is repeated.
        weight = torch.where(topk_ids == expert, topk_weights, 0.0).sum(dim=1, keepdim=True)
        out = out + torch.where(weight != 0, result * weight.to(x.dtype), 0.0)
    return out
