"""Real transformers models with our experts against the same models with their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.integrations.moe import use_experts_implementation

from pointsman_kernels.integrations.transformers import (
    NAME,
    count_expert_calls,
    experts_modules,
    is_fused,
    recognise_gate,
    register,
)

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

MODELS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "mixtral": (
        transformers.MixtralConfig,
        {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen3-moe": (
        transformers.Qwen3MoeConfig,
        {
            "moe_intermediate_size": 24,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "head_dim": 8,
        },
    ),
    "olmoe": (
        transformers.OlmoeConfig,
        {"intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 2},
    ),
    "gpt-oss": (
        transformers.GptOssConfig,
        {
            "intermediate_size": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "sliding_window": 16,
            "layer_types": ["full_attention", "full_attention"],
        },
    ),
}


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    kind, own = MODELS[name]
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(kind(**_SIZES, **own)).eval()
    for module in experts_modules(model):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)


def logits(model: Any, implementation: str) -> torch.Tensor:
    model.set_experts_implementation(implementation)
    ids = torch.arange(3 * 11).reshape(3, 11) % 64
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits
    return found


@pytest.fixture(autouse=True)
def _registered() -> None:
    assert NAME == register()


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_the_models_own_experts(name: str) -> None:
    model = tiny(name)
    assert [True, True] == [is_fused(module) for module in experts_modules(model)]

    expected = logits(model, "eager")

    torch.testing.assert_close(logits(model, NAME), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_experts_are_as_close_as_half_precision_allows(name: str, dtype: torch.dtype) -> None:
    # One layer's experts: through a whole model one rounding can change a later layer's routing.
    model = tiny(name, dtype)
    module: Any = experts_modules(model)[0]
    random = torch.Generator().manual_seed(1)
    x = torch.randn(21, 32, generator=random).to(dtype)
    ids = torch.rand(21, module.down_proj.shape[0], generator=random).topk(2).indices
    weights = torch.rand(21, 2, generator=random).to(dtype)
    model.set_experts_implementation("eager")
    with torch.inference_mode():
        expected = module(x, ids, weights).float()
        model.set_experts_implementation(NAME)
        found = module(x, ids, weights)

    assert dtype == found.dtype
    assert float((found.float() - expected).abs().max() / expected.abs().max()) < 0.02


def test_calls_are_counted_by_layer_when_the_model_runs() -> None:
    model = tiny("mixtral")
    calls = count_expert_calls(model)
    assert calls is not None

    logits(model, NAME)
    logits(model, "eager")

    assert [3 * 11 * 2] * 2 == [sum(row) for row in calls.snapshot()]


def test_calls_are_not_counted_for_a_dense_model() -> None:
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**_SIZES, intermediate_size=48)
    )

    assert count_expert_calls(model) is None


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_experts_skip_tokens_of_other_machines(name: str) -> None:
    model = tiny(name)
    model.set_experts_implementation(NAME)
    module: Any = experts_modules(model)[0]
    experts = module.down_proj.shape[0]
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0, experts], [experts, 1], [2, 3], [experts, experts], [1, 0]])
    weights = torch.tensor([[0.4, 0.0], [0.0, 0.7], [0.5, 0.5], [0.0, 0.0], [0.9, 0.1]])
    here = ids.clamp(max=experts - 1)

    found = module(x, ids, weights)

    torch.testing.assert_close(found, module(x, here, weights))
    assert bool((found[3] == 0).all())


class _Experts(torch.nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts = 3
        self.gate_up_proj = torch.nn.Parameter(torch.randn(3, 16, 8))
        self.down_proj = torch.nn.Parameter(torch.randn(3, 8, 8))
        self.act_fn = torch.nn.SiLU()

    def forward(self, *args: Any) -> torch.Tensor:
        raise RuntimeError("the registered implementation takes this one's place")


@use_experts_implementation
class _OddGate(_Experts):
    def _apply_gate(self, columns: torch.Tensor) -> torch.Tensor:
        gate, up = columns.chunk(2, dim=-1)
        return torch.tanh(gate) * (up - 3)


@use_experts_implementation
class _OddActivation(_Experts):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.act_fn = torch.nn.Softplus()


@pytest.mark.parametrize("kind", [_OddGate, _OddActivation])
def test_experts_fall_back_to_transformers_when_the_gate_is_not_known(kind: type[Any]) -> None:
    config = transformers.MixtralConfig(**_SIZES)
    module = kind(config)
    x, ids = torch.randn(4, 8), torch.tensor([[0, 1], [1, 2], [2, 0], [1, 1]])
    weights = torch.rand(4, 2)
    config._experts_implementation = "grouped_mm"
    expected = module(x, ids, weights)
    config._experts_implementation = NAME

    assert recognise_gate(module) is None
    torch.testing.assert_close(module(x, ids, weights), expected)
