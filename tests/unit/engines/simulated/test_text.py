"""Tokens and words of the Simulated engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.engines.simulated.text import (
    TOKEN_COUNT,
    WORDS,
    LengthModel,
    block_hashes,
    continue_tokens,
    detokenize,
    render_chat,
    seed_of,
    tokenize,
)

TOKENS = st.lists(st.integers(0, TOKEN_COUNT - 1), max_size=40)


@given(st.text())
def test_detokenize_gives_the_text_back_when_it_was_tokenized(text: str) -> None:
    assert text == detokenize(tokenize(text))


@given(st.text(st.characters(categories=["L", "P"]), min_size=1), st.integers(0, 30))
def test_tokenize_finds_the_answers_own_tokens_when_it_comes_back(text: str, count: int) -> None:
    prompt = tokenize(text)
    answer = continue_tokens(prompt, count, 1)
    assert prompt + answer == tokenize(text + detokenize(answer))


@given(st.lists(st.integers(0, TOKEN_COUNT - 1), min_size=1, max_size=40), st.integers(0, 20))
def test_continue_tokens_goes_on_as_before_when_the_answers_beginning_is_given(
    prompt: list[int], kept: int
) -> None:
    answer = continue_tokens(prompt, 20, 5)
    assert answer[kept:] == continue_tokens(prompt + answer[:kept], 20 - kept, 5)


def test_continue_tokens_differs_when_any_earlier_token_or_the_seed_does() -> None:
    prompt = tokenize("one two six")
    changed = tokenize("two two six")
    answers = [
        detokenize(continue_tokens(tokens, 12, seed))
        for tokens, seed in ((prompt, 0), (changed, 0), (prompt, 1))
    ]
    assert 3 == len(set(answers))


def test_words_are_one_token_each_when_a_space_precedes_them() -> None:
    assert all(1 == len(tokenize(f" {word}")) for word in WORDS)
    assert len(WORDS) == len(set(WORDS)) > 150


@pytest.mark.parametrize("token", [-1, TOKEN_COUNT])
def test_detokenize_names_the_range_when_an_id_is_unknown(token: int) -> None:
    with pytest.raises(ValueError, match=f"token id {token} is not known: ids are 0 to"):
        detokenize([token])


@given(TOKENS, TOKENS, st.integers(1, 8))
def test_block_hashes_agree_exactly_as_long_as_the_tokens_do(
    left: list[int], right: list[int], size: int
) -> None:
    pairs = zip(block_hashes(left, size), block_hashes(right, size), strict=False)
    for index, (one, other) in enumerate(pairs):
        end = (index + 1) * size
        assert (left[:end] == right[:end]) == (one == other)


def test_block_hashes_share_nothing_when_salts_differ() -> None:
    tokens = list(range(64))
    assert not set(block_hashes(tokens, 4, salt="a")) & set(block_hashes(tokens, 4, salt="b"))


def test_render_chat_begins_with_the_earlier_turns_when_a_turn_is_added() -> None:
    turns = [{"role": "user", "content": "Hi"}]
    answered = [*turns, {"role": "assistant", "content": "the cat"}]
    asked = [*answered, {"role": "user", "content": "And?"}]
    assert render_chat(asked).startswith(render_chat(turns) + "the cat\n")


def test_render_chat_tells_media_apart_when_only_they_differ() -> None:
    first, second = (
        render_chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": u}}]}])
        for u in ("data:,a", "data:,b")
    )
    assert first != second
    assert "<|image_url " in first


def test_lengths_have_the_stated_mean_when_many_are_drawn() -> None:
    model = LengthModel(mean_tokens=100, sigma=0.7)
    drawn = [model.draw([number], 0) for number in range(4000)]
    assert pytest.approx(100, rel=0.06) == sum(drawn) / len(drawn)
    assert len(set(drawn)) > 100


def test_lengths_are_all_the_mean_when_sigma_is_zero() -> None:
    assert {12} == {LengthModel(mean_tokens=12, sigma=0).draw([n], 0) for n in range(9)}


def test_seed_of_tells_parts_apart_when_their_joined_text_is_the_same() -> None:
    assert seed_of("ab", "c") != seed_of("a", "bc")
