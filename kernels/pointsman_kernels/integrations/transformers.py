"""The experts implementation ``pointsman`` for transformers 5.

``register()`` makes the name known; ``model.set_experts_implementation("pointsman")`` selects it.
Transformers then calls :func:`experts_forward` instead of each experts module's own forward; the
router stays the model's. What is not recognised goes to the stock implementation, so that a new
model is slower, never wrong.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

from pointsman_kernels.calls import ExpertCalls
from pointsman_kernels.gate import Activation, Gate
from pointsman_kernels.moe import fused_moe

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME = "pointsman"
"""What the implementation is called in ``experts_implementation``."""

_log = logging.getLogger(__name__)

_CALLS = "_pointsman_calls"
_GATE = "_pointsman_gate"

# By class name: the classes sit in transformers.activations and torch.nn, under several aliases.
_ACTIVATIONS = {
    "SiLU": Activation.SILU,
    "SiLUActivation": Activation.SILU,
    "GELUActivation": Activation.GELU,
    "GELUTanh": Activation.GELU_TANH,
    "NewGELUActivation": Activation.GELU_TANH,
    "ReLU": Activation.RELU,
    "ReLUSquaredActivation": Activation.RELU_SQUARED,
}
_DEFAULT_GATE = "_default_apply_gate"
_GPT_OSS_GATE = "GptOssExperts._apply_gate"


def register() -> str:
    """Make the implementation known to transformers; again is harmless. Returns its name."""
    ExpertsInterface.register(NAME, experts_forward)
    return NAME


def experts_forward(
    self: nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Forward of an experts module.

    Args:
        self: the module, with transformers' weights and flags.
        hidden_states: [T, H].
        top_k_index: [T, k]; ids of experts that are elsewhere (id == num_experts) are skipped.
        top_k_weights: [T, k].

    Returns:
        [T, H].
    """
    module: Any = self
    gate = _gate_of(module)
    if gate is None:
        result: torch.Tensor = grouped_mm_experts_forward(
            module, hidden_states, top_k_index, top_k_weights
        )
        return result
    first = "gate_up_proj" if gate.gated else "up_proj"
    weight = getattr(module, first)
    calls, layer = getattr(module, _CALLS, (None, 0))
    return fused_moe(
        hidden_states.to(weight.dtype),
        weight,
        module.down_proj,
        top_k_index,
        top_k_weights,
        gate=gate,
        gate_up_bias=getattr(module, f"{first}_bias") if module.has_bias else None,
        down_bias=module.down_proj_bias if module.has_bias else None,
        transposed=module.is_transposed,
        calls=calls,
        layer=layer,
    ).to(hidden_states.dtype)


def is_fused(module: nn.Module) -> bool:
    """Whether this experts module runs here; False: it falls back to transformers' own."""
    return _gate_of(module) is not None


def experts_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that transformers' experts interface serves, in the model's order."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")
    ]


def count_expert_calls(model: nn.Module) -> ExpertCalls | None:
    """Count this model's expert calls from now on.

    Returns:
        The counters, one row for each MoE layer in the model's order; None for a model without
        experts that run here.
    """
    modules = [module for module in experts_modules(model) if is_fused(module)]
    if not modules:
        return None
    experts = max(_expert_count(module) for module in modules)
    calls = ExpertCalls(layers=len(modules), num_experts=experts)
    for layer, module in enumerate(modules):
        if _expert_count(module) == experts:
            setattr(module, _CALLS, (calls, layer))
    return calls


def _expert_count(module: Any) -> int:
    return int(module.down_proj.shape[0])


def _gate_of(module: Any) -> Gate | None:
    # Remembered on the module: what it is decided from never changes.
    known = module.__dict__.get(_GATE, False)
    if known is False:
        known = recognise_gate(module)
        module.__dict__[_GATE] = known
        if known is None:
            _log.warning(
                "%s has a gate that is not known here; its experts run in transformers' own "
                "grouped_mm and are not counted",
                type(module).__name__,
            )
    return known  # type: ignore[no-any-return]


def recognise_gate(module: Any) -> Gate | None:
    """The gate of an experts module, or None where it is none that is known to be equal.

    A subclass may override ``_apply_gate``: only the default and gpt-oss's are taken.
    """
    rule = type(module)._apply_gate.__qualname__  # noqa: SLF001 (transformers' documented hook)
    if rule == _GPT_OSS_GATE:
        return Gate(interleaved=True, alpha=module.alpha, limit=module.limit, up_offset=1.0)
    activation = _ACTIVATIONS.get(type(getattr(module, "act_fn", None)).__name__)
    if activation is None:
        return None
    if not module.has_gate:
        return Gate(activation=activation, gated=False)
    # The default gate takes halves whatever is_concatenated says, so an interleaved weight under
    # it would be a contradiction.
    if rule != _DEFAULT_GATE or not module.is_concatenated:
        return None
    return Gate(activation=activation)
