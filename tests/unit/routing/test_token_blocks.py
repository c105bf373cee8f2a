from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.routing.kv.token_blocks import ROOT, chained, token_blocks

ids = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(ids, ids, st.integers(1, 8), st.sampled_from(["", "salt"]))
def test_blocks_begin_alike_when_the_tokens_do(
    shared: list[int], rest: list[int], size: int, salt: str
) -> None:
    whole = token_blocks(shared + rest, block_tokens=size, salt=salt)
    part = token_blocks(shared, block_tokens=size, salt=salt)
    assert len(shared + rest) // size == len(whole)
    assert part == whole[: len(part)]


def test_blocks_differ_when_anything_before_them_does() -> None:
    names = {
        block
        for tokens, salt in (([1, 2, 3, 4], ""), ([9, 2, 3, 4], ""), ([1, 2, 3, 4], "salt"))
        for block in token_blocks(tokens, block_tokens=2, salt=salt)
    }
    assert 6 == len(names)


def test_salt_is_what_an_engine_says_of_the_first_block() -> None:
    first = chained(ROOT, array("I", [1, 2]).tobytes(), ["salt"])
    second = chained(first, array("I", [3, 4]).tobytes())
    assert [first, second] == token_blocks([1, 2, 3, 4, 5], block_tokens=2, salt="salt").tolist()


@pytest.mark.parametrize("wrong", [-1, 2**40])
def test_ids_are_refused_when_out_of_range(wrong: int) -> None:
    with pytest.raises(OverflowError):
        token_blocks([1, wrong], block_tokens=1)
