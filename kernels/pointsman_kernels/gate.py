"""The non-linear part between an expert's two matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as functional


class Activation(StrEnum):
    """The element-wise function."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"
    RELU_SQUARED = "relu_squared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What becomes of the first product's columns.

    Gated: ``activation(g) * (u + up_offset)`` with g and u the two halves of the columns, or the
    even and odd ones where ``interleaved``. Ungated: ``activation(a)`` of all columns.
    """

    activation: Activation = Activation.SILU
    gated: bool = True
    interleaved: bool = False
    alpha: float = 1.0
    """SiLU only: g * sigmoid(alpha * g)."""
    limit: float | None = None
    """g is cut to at most this, u to both sides of it."""
    up_offset: float = 0.0

    def __post_init__(self) -> None:
        if self.alpha != 1.0 and self.activation is not Activation.SILU:
            message = (
                f"alpha is {self.alpha} with activation {self.activation.value}; "
                "only silu has an alpha: leave it at 1.0"
            )
            raise ValueError(message)

    def output_width(self, columns: int) -> int:
        """How many columns remain of ``columns``."""
        return columns // 2 if self.gated else columns


SWIGLU = Gate()
"""Mixtral, Qwen3-MoE, OLMoE, DeepSeek-V3, Granite."""

GPT_OSS = Gate(interleaved=True, alpha=1.702, limit=7.0, up_offset=1.0)
"""gpt-oss with the constants of its published configurations."""


def apply_gate(columns: torch.Tensor, gate: Gate) -> torch.Tensor:
    """Apply the gate in float32.

    Args:
        columns: [S, 2F] gated, [S, F] ungated; any floating dtype.
        gate: the rule.

    Returns:
        [S, F] in the dtype of ``columns``.

    Raises:
        ValueError: a gated rule and an odd number of columns.
    """
    if gate.gated and columns.shape[-1] % 2:
        message = (
            f"{columns.shape[-1]} columns cannot be split into gate and up; an even number is "
            "needed: check the weight's shape, or use an ungated Gate"
        )
        raise ValueError(message)
    # float64 stays: the tests' references compute in it.
    wide = columns if columns.dtype == torch.float64 else columns.float()
    if not gate.gated:
        return _activate(wide, gate).to(columns.dtype)
    if gate.interleaved:
        g, u = wide[..., ::2], wide[..., 1::2]
    else:
        g, u = wide.chunk(2, dim=-1)
    if gate.limit is not None:
        g = g.clamp(max=gate.limit)
        u = u.clamp(min=-gate.limit, max=gate.limit)
    return (_activate(g, gate) * (u + gate.up_offset)).to(columns.dtype)


def _activate(values: torch.Tensor, gate: Gate) -> torch.Tensor:
    match gate.activation:
        case Activation.SILU:
            if gate.alpha == 1.0:
                return functional.silu(values)
            return values * torch.sigmoid(gate.alpha * values)
        case Activation.GELU:
            return functional.gelu(values)
        case Activation.GELU_TANH:
            return functional.gelu(values, approximate="tanh")
        case Activation.RELU:
            return functional.relu(values)
        case Activation.RELU_SQUARED:
            return functional.relu(values).square()
