"""The dispatch plan's laws."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_kernels import plan


@st.composite
def assignments(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    experts = draw(st.integers(1, 9))
    tokens, top_k = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    ids = st.integers(-2, experts + 2)
    rows = draw(
        st.lists(st.lists(ids, min_size=top_k, max_size=top_k), min_size=tokens, max_size=tokens)
    )
    return torch.tensor(rows, dtype=torch.int64).reshape(tokens, top_k), experts


@given(assignments())
@settings(max_examples=200, deadline=None)
def test_plan_is_the_stable_grouping_of_what_is_kept(given: tuple[torch.Tensor, int]) -> None:
    ids, experts = given
    flat = ids.reshape(-1).tolist()
    expected = [[s for s, e in enumerate(flat) if e == expert] for expert in range(experts)]

    found = plan(ids, experts)

    offsets = found.offsets.tolist()
    grouped = [found.slots[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert expected == grouped
    assert [len(group) for group in expected] == found.counts.tolist()
    assert [0 <= e < experts for e in flat] == found.kept.tolist()


@given(assignments())
@settings(max_examples=100, deadline=None)
def test_plan_rows_and_slots_are_inverse(given: tuple[torch.Tensor, int]) -> None:
    ids, experts = given
    found = plan(ids, experts)

    everything = torch.arange(ids.numel())
    assert torch.equal(everything, found.slots[found.rows])
    assert torch.equal(everything, found.rows[found.slots])
    assert torch.equal(found.slots // max(1, ids.shape[1]), found.tokens)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
def test_plan_takes_any_integer_dtype(dtype: torch.dtype) -> None:
    found = plan(torch.tensor([[1, 0], [1, 3]], dtype=dtype), 3)

    assert [0, 1, 3, 3] == found.offsets.tolist()
    assert [1, 0, 2, 3] == found.slots.tolist()


@pytest.mark.parametrize(
    ("ids", "experts", "says"),
    [
        (torch.zeros(4, dtype=torch.int64), 2, r"\[T, k\]"),
        (torch.zeros(4, 0, dtype=torch.int64), 2, "k >= 1"),
        (torch.zeros(4, 2), 2, "integer"),
        (torch.zeros(4, 2, dtype=torch.bool), 2, "integer"),
        (torch.zeros(4, 2, dtype=torch.int64), 0, "num_experts is 0"),
    ],
)
def test_plan_says_what_is_allowed_when_input_is_wrong(
    ids: torch.Tensor, experts: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        plan(ids, experts)
