"""The salt in the hash of a request's first page. No model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.continuous_batching.cache_allocators.cache_allocator import (
    compute_block_hash,
)

from pointsman_serving.engines.transformers.prefix_salt import salted_request_id, salted_tokens

PROMPT = list(range(12))


def hashes(salt: str, request_id: str = "r", page: int = 4) -> list[int]:
    tokens = salted_tokens(PROMPT, salted_request_id(request_id, salt))
    found: list[int] = []
    for start in range(0, len(tokens), page):
        parent = found[-1] if found else None
        found.append(compute_block_hash(parent, tokens[start : start + page]))
    return found


@given(st.text(), st.text(), st.text(), st.sampled_from([1, 2, 4]))
def test_pages_are_told_apart_by_salt_and_by_nothing_else_of_the_request(
    first: str, second: str, request_id: str, page: int
) -> None:
    if first == second:
        assert hashes(first, page=page) == hashes(second, request_id, page)
    else:
        assert set(hashes(first, page=page)).isdisjoint(hashes(second, request_id, page))


def test_tokens_are_as_they_are_when_there_is_no_salt() -> None:
    assert PROMPT is salted_tokens(PROMPT, salted_request_id("r/salt:00", ""))
    assert PROMPT is salted_tokens(PROMPT, "the library's own")


def test_tokens_keep_their_number_and_order_when_salted() -> None:
    assert PROMPT == salted_tokens(PROMPT, salted_request_id("r", "s"))
