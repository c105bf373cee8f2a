"""Routing: values, ties, weights."""

from __future__ import annotations

import pytest
import torch

from pointsman_kernels import Scoring, route


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (64, 4), (256, 8), (5, 5), (1, 1)])
@pytest.mark.parametrize("tokens", [1, 32, 128])
def test_route_takes_the_largest_softmax_values(experts: int, top_k: int, tokens: int) -> None:
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(1))
    expected = logits.softmax(-1).topk(top_k)

    found = route(logits, top_k, renormalize=False)

    assert torch.equal(expected.indices, found.topk_ids)
    torch.testing.assert_close(found.topk_weights, expected.values)


@pytest.mark.parametrize("scoring", list(Scoring))
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_route_weights_add_up_to_the_scale_when_renormalised(
    scoring: Scoring, scale: float
) -> None:
    logits = torch.randn(64, 16, generator=torch.Generator().manual_seed(2)) * 5

    found = route(logits, 4, scoring=scoring, scale=scale)

    torch.testing.assert_close(found.topk_weights.sum(-1), torch.full((64,), scale))
    assert bool((found.topk_weights >= 0).all())


def test_route_gives_ties_to_the_lower_id() -> None:
    found = route(torch.zeros(3, 6), 3)

    assert [[0, 1, 2]] * 3 == found.topk_ids.tolist()


def test_route_bias_changes_the_choice_but_not_the_weights() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    bias = torch.tensor([0.0, 0.0, 0.0, 9.0])

    found = route(logits, 2, scoring=Scoring.SIGMOID, renormalize=False, correction_bias=bias)

    assert [[3, 0]] == found.topk_ids.tolist()
    torch.testing.assert_close(found.topk_weights, logits.sigmoid()[:, [3, 0]])


@pytest.mark.parametrize("value", [1e4, -1e4, 0.0])
@pytest.mark.parametrize("scoring", list(Scoring))
def test_route_is_finite_when_logits_are_extreme(value: float, scoring: Scoring) -> None:
    found = route(torch.full((2, 4), value), 2, scoring=scoring)

    assert bool(found.topk_weights.isfinite().all())


def test_route_has_no_rows_when_there_are_no_tokens() -> None:
    found = route(torch.empty(0, 4), 2)

    assert (0, 2) == tuple(found.topk_ids.shape) == tuple(found.topk_weights.shape)


@pytest.mark.parametrize(
    ("logits", "top_k", "bias", "says"),
    [
        (torch.zeros(4), 1, None, r"\[T, E\]"),
        (torch.zeros(2, 4), 0, None, "top_k is 0; allowed are 1 to the number of experts, 4"),
        (torch.zeros(2, 4), 5, None, "top_k is 5"),
        (torch.zeros(2, 4), 1, torch.zeros(3), r"allowed is \[4\]"),
    ],
)
def test_route_says_what_is_allowed_when_input_is_wrong(
    logits: torch.Tensor, top_k: int, bias: torch.Tensor | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        route(logits, top_k, correction_bias=bias)
