"""The MoE layer against its definition in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_kernels import (
    GPT_OSS,
    SWIGLU,
    Activation,
    ExpertCalls,
    Gate,
    combine,
    down,
    fused_moe,
    fused_moe_reference,
    gate_up,
    plan,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Against float64 of the same rounded inputs: what is left is the rounding between the steps.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True, kw_only=True)
class Case:
    tokens: int
    experts: int
    top_k: int
    hidden: int = 24
    width: int = 40
    dtype: torch.dtype = torch.float32
    gate: Gate = SWIGLU
    biased: bool = False
    transposed: bool = False
    seed: int = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape, generator=random) * scale).to(self.dtype)

        columns = self.width * (2 if self.gate.gated else 1)
        first = (self.experts, columns, self.hidden)
        second = (self.experts, self.hidden, self.width)
        if self.transposed:
            first, second = (first[0], first[2], first[1]), (second[0], second[2], second[1])
        made = {
            "x": normal(self.tokens, self.hidden),
            "gate_up_weight": normal(*first, scale=self.hidden**-0.5),
            "down_weight": normal(*second, scale=self.width**-0.5),
            "topk_ids": torch.randint(0, self.experts, (self.tokens, self.top_k), generator=random),
            "topk_weights": torch.rand(self.tokens, self.top_k, generator=random),
        }
        if self.biased:
            made["gate_up_bias"] = normal(self.experts, columns)
            made["down_bias"] = normal(self.experts, self.hidden)
        return made


def check(case: Case, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    tensors = tensors or case.tensors()
    flags = {"gate": case.gate, "transposed": case.transposed}
    wide = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    expected = fused_moe_reference(**wide, **flags)

    found = fused_moe(**tensors, **flags)

    assert case.dtype == found.dtype
    assert expected.shape == found.shape
    scale = expected.abs().max().clamp_min(1e-3) if expected.numel() else torch.tensor(1.0)
    error = (found.double() - expected).abs().max() / scale if expected.numel() else 0.0
    assert float(error) <= TOLERANCE[case.dtype]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 3, 33, 128])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (16, 4), (60, 6), (5, 5), (1, 1)])
def test_moe_equals_its_definition(
    dtype: torch.dtype, tokens: int, experts: int, top_k: int
) -> None:
    check(Case(tokens=tokens, experts=experts, top_k=top_k, dtype=dtype))


@pytest.mark.parametrize(("hidden", "width"), [(1, 1), (7, 13), (64, 1), (33, 65), (576, 96)])
def test_moe_equals_its_definition_when_widths_are_odd(hidden: int, width: int) -> None:
    check(Case(tokens=9, experts=4, top_k=2, hidden=hidden, width=width))


@pytest.mark.parametrize(
    "gate",
    [
        GPT_OSS,
        Gate(interleaved=True),
        Gate(activation=Activation.GELU),
        Gate(activation=Activation.GELU_TANH),
        Gate(gated=False, activation=Activation.RELU_SQUARED),
        Gate(gated=False, activation=Activation.RELU),
    ],
)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_moe_equals_its_definition_for_every_gate_and_layout(
    gate: Gate, biased: bool, transposed: bool, dtype: torch.dtype
) -> None:
    check(
        Case(
            tokens=17,
            experts=6,
            top_k=3,
            gate=gate,
            biased=biased,
            transposed=transposed,
            dtype=dtype,
        )
    )


def test_moe_equals_its_definition_when_all_tokens_go_to_one_expert() -> None:
    case = Case(tokens=40, experts=16, top_k=1)
    tensors = case.tensors()
    tensors["topk_ids"].fill_(11)

    check(case, tensors)


def test_moe_equals_its_definition_when_most_experts_are_empty() -> None:
    case = Case(tokens=50, experts=16, top_k=4)
    tensors = case.tensors()
    tensors["topk_ids"] %= 4

    check(case, tensors)


def test_moe_counts_an_expert_twice_when_its_id_is_repeated() -> None:
    case = Case(tokens=6, experts=4, top_k=2)
    tensors = case.tensors()
    tensors["topk_ids"][:, 1] = tensors["topk_ids"][:, 0]

    check(case, tensors)


def test_moe_equals_its_definition_when_tensors_are_not_contiguous() -> None:
    case = Case(tokens=10, experts=4, top_k=2)
    tensors = case.tensors()
    scattered = {
        name: torch.stack([t, t], dim=-1)[..., 0] if name != "topk_ids" else t
        for name, t in tensors.items()
    }
    assert not scattered["gate_up_weight"].is_contiguous()

    # Other strides may take another path of the BLAS, which rounds otherwise on some processors:
    # each is within the tolerance of the definition, and gives the same bits again.
    assert torch.equal(check(case, scattered), check(case, scattered))


@pytest.mark.parametrize("sentinel", [-1, 4, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_moe_drops_ids_of_no_expert(sentinel: int, dtype: torch.dtype) -> None:
    case = Case(tokens=12, experts=4, top_k=3, dtype=dtype)
    tensors = case.tensors()
    dropped = torch.rand(12, 3, generator=torch.Generator().manual_seed(3)) < 0.4
    dropped[5] = True
    tensors["topk_ids"] = tensors["topk_ids"].masked_fill(dropped, sentinel)

    found = check(case, tensors)

    assert bool((found[5] == 0).all())


def test_moe_leaves_no_trace_of_a_dropped_row_when_its_weight_is_not_a_number() -> None:
    case = Case(tokens=4, experts=3, top_k=2)
    tensors = case.tensors()
    tensors["topk_ids"][:, 1] = 3
    without = fused_moe(**tensors)
    tensors["topk_weights"][:, 1] = float("nan")

    assert torch.equal(without, fused_moe(**tensors))


def test_combine_never_reads_dropped_rows() -> None:
    ids = torch.tensor([[0, 2], [2, 1]])
    dispatch = plan(ids, 2)
    rows = torch.ones(4, 3)
    rows[dispatch.offsets[-1] :] = float("nan")

    found = combine(rows, torch.full((2, 2), 0.5), dispatch)

    assert [[0.5] * 3] * 2 == found.tolist()


@given(st.integers(0, 10_000), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_moe_moves_with_its_tokens(seed: int, tokens: int) -> None:
    tensors = Case(tokens=tokens, experts=5, top_k=2, seed=seed).tensors()
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    moved = {
        name: t[order] if name in ("x", "topk_ids", "topk_weights") else t
        for name, t in tensors.items()
    }

    torch.testing.assert_close(fused_moe(**moved), fused_moe(**tensors)[order])


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_moe_does_not_depend_on_the_experts_names(seed: int) -> None:
    tensors = Case(tokens=11, experts=6, top_k=2, seed=seed).tensors()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    renamed = dict(tensors)
    renamed["gate_up_weight"] = tensors["gate_up_weight"][order]
    renamed["down_weight"] = tensors["down_weight"][order]
    renamed["topk_ids"] = order.argsort()[tensors["topk_ids"]]

    torch.testing.assert_close(fused_moe(**renamed), fused_moe(**tensors))


def test_moe_gives_the_same_bits_when_asked_again() -> None:
    tensors = Case(tokens=64, experts=8, top_k=2, dtype=torch.bfloat16).tensors()

    assert torch.equal(fused_moe(**tensors), fused_moe(**tensors))


def test_moe_is_linear_in_its_weights() -> None:
    tensors = Case(tokens=8, experts=4, top_k=2, dtype=torch.float64).tensors()
    doubled = {**tensors, "topk_weights": tensors["topk_weights"] * 2}

    torch.testing.assert_close(fused_moe(**doubled), fused_moe(**tensors) * 2)


def test_calls_count_the_rows_of_each_expert_and_layer() -> None:
    calls = ExpertCalls(layers=2, num_experts=4)
    tensors = Case(tokens=3, experts=4, top_k=2).tensors()
    tensors["topk_ids"] = torch.tensor([[0, 1], [1, 4], [-1, 3]])

    for layer in (0, 1, 1):
        fused_moe(**tensors, calls=calls, layer=layer)

    assert [[1, 2, 0, 1], [2, 4, 0, 2]] == calls.snapshot()


@pytest.mark.parametrize(
    ("layer", "counts", "says"),
    [
        (2, torch.zeros(4, dtype=torch.int64), "layer is 2; allowed are 0 to 1"),
        (0, torch.zeros(3, dtype=torch.int64), r"allowed is \[4\]"),
    ],
)
def test_calls_say_what_is_allowed_when_input_is_wrong(
    layer: int, counts: torch.Tensor, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        ExpertCalls(layers=2, num_experts=4).add(layer, counts)


@pytest.mark.parametrize(
    ("changed", "value", "says"),
    [
        ("topk_ids", torch.zeros(2, 2, dtype=torch.int64), "number of tokens"),
        ("x", torch.zeros(3, 5), "gate_up weight takes 24 columns"),
        ("x", torch.zeros(3, 24, dtype=torch.float16), "must be equal"),
        ("down_weight", torch.zeros(3, 24, 40), "E = 4"),
        ("down_weight", torch.zeros(4, 24, 39), "down weight takes 39 columns"),
        ("gate_up_weight", torch.zeros(4, 81, 24), "even number"),
        ("topk_weights", torch.zeros(3, 3), "topk_weights have shape"),
        ("gate_up_bias", torch.zeros(4, 3), "bias of gate_up weight"),
    ],
)
def test_moe_says_what_is_allowed_when_a_shape_is_wrong(
    changed: str, value: torch.Tensor, says: str
) -> None:
    tensors = {**Case(tokens=3, experts=4, top_k=2).tensors(), changed: value}

    with pytest.raises(ValueError, match=says):
        fused_moe(**tensors)


def test_halves_say_what_is_allowed_when_the_plan_is_another() -> None:
    dispatch = plan(torch.zeros(2, 2, dtype=torch.int64), 2)

    with pytest.raises(ValueError, match="the plan's T = 2"):
        gate_up(torch.zeros(3, 4), torch.zeros(2, 8, 4), dispatch)
    with pytest.raises(ValueError, match="S = 4"):
        down(torch.zeros(3, 4), torch.zeros(2, 8, 4), dispatch)
    with pytest.raises(ValueError, match="S = 4"):
        combine(torch.zeros(3, 4), torch.zeros(2, 2), dispatch)


def test_gate_refuses_an_alpha_that_nothing_would_read() -> None:
    with pytest.raises(ValueError, match="only silu has an alpha"):
        Gate(activation=Activation.GELU, alpha=2.0)
