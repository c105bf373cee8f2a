from __future__ import annotations

import re
import zlib
from array import array
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_serving.routing.kv.token_blocks import token_blocks
from pointsman_serving.routing.kv.token_chains import TokenChains
from pointsman_serving.routing.prefix import prompt_of
from pointsman_serving.routing.types import Api, Prompt
from tests.unit.routing.fleet import text

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE = 4
SYSTEM = text("system", 700)


def prompt(*messages: str) -> Prompt:
    return prompt_of({"messages": _turns(messages)}, Api.CHAT, model="m", tenant="")


def _turns(messages: Sequence[str]) -> list[dict[str, str]]:
    roles = ["system", "user", "assistant"]
    return [
        {"role": roles[0] if not i else roles[1 + (i + 1) % 2], "content": message}
        for i, message in enumerate(messages)
    ]


def tokens(*messages: str, template: str = "<s>") -> list[int]:
    """A toy tokenizer: words and spaces, in a template."""
    rendered = "".join(f"{template}{turn['role']}\n{turn['content']}" for turn in _turns(messages))
    return [zlib.crc32(word.encode()) for word in re.findall(r"\w+|\W", rendered)]


def chain(*messages: str, template: str = "<s>") -> array[int]:
    return token_blocks(tokens(*messages, template=template), block_tokens=SIZE)


def learn(chains: TokenChains, *messages: str, template: str = "<s>") -> None:
    ids = tokens(*messages, template=template)
    blocks = token_blocks(ids, block_tokens=SIZE)
    chains.learn(prompt(*messages), blocks, tokens=len(ids), block_tokens=SIZE)


def found(chains: TokenChains, *messages: str) -> list[int]:
    known = chains.find(prompt(*messages))
    return [] if known is None else known.blocks.tolist()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def test_prompt_is_known_whole_when_it_comes_again() -> None:
    chains = TokenChains()
    learn(chains, SYSTEM, "hello")
    assert chain(SYSTEM, "hello").tolist() == found(chains, SYSTEM, "hello")


def test_next_turn_is_known_as_far_as_the_answer_when_that_was_learned() -> None:
    chains = TokenChains()
    answer = text("answer", 300)
    learn(chains, SYSTEM, "hello", answer)
    turn = (SYSTEM, "hello", answer, "and then?")
    assert chain(SYSTEM, "hello", answer).tolist() == found(chains, *turn)
    assert common(chain(*turn), found(chains, *turn)) >= len(chain(SYSTEM, "hello", answer)) - 1


def test_nothing_is_known_when_the_beginning_differs() -> None:
    chains = TokenChains()
    learn(chains, SYSTEM, "hello")
    assert chains.find(prompt("x" + SYSTEM, "hello")) is None
    assert chains.find(prompt("short")) is None


def test_shared_system_prompt_is_exact_when_two_prompts_have_parted_after_it() -> None:
    chains = TokenChains()
    # Words that weigh differently in tokens, so that proportion misleads.
    dense, sparse = "a b c d e f g " * 60, "incomprehensibilities " * 60
    for question in (dense, sparse):
        learn(chains, SYSTEM, question)
    asked = (SYSTEM, "1 2 3 4 5 6 7 8 " * 60)
    shared = common(chain(*asked), chain(SYSTEM, dense))
    # A byte block of 64 bytes is at most 64 tokens here.
    assert shared - 64 // SIZE <= len(found(chains, *asked)) <= shared


def test_block_ends_earlier_when_prompts_part_before_it_was_thought_to_end() -> None:
    chains = TokenChains()
    # The question's tokens are shorter than the system prompt's, so too many are taken for that.
    learn(chains, SYSTEM, "abcdefgh ijklmnop " * 17)
    asked = (SYSTEM, "hgfedcba ponmlkji " * 17)
    shared = common(chain(*asked), chain(SYSTEM, "aaaabbbb ccccdddd " * 17))
    assert len(found(chains, *asked)) > shared
    learn(chains, SYSTEM, "aaaabbbb ccccdddd " * 17)
    assert len(found(chains, *asked)) <= shared


def test_block_ends_later_when_prompts_share_more_than_was_thought() -> None:
    chains = TokenChains()
    dense, sparse = "ab cd ef gh ij kl mn op " * 30, "incomprehensibilities " * 30
    learn(chains, dense, sparse)
    asked = (dense, "otherworldlinesses " * 30)
    shared = common(chain(*asked), chain(dense, sparse))
    before = len(found(chains, *asked))
    for number in range(12):
        learn(chains, dense, f"{number}unintentionally " * 30)
    assert before < len(found(chains, *asked)) <= shared


def test_tokens_are_learned_anew_when_the_template_has_changed() -> None:
    chains = TokenChains()
    asked = (SYSTEM, text("long", 2_000))
    learn(chains, *asked)
    learn(chains, *asked, template="<other>")
    assert chain(*asked, template="<other>").tolist() == found(chains, *asked)


def test_tail_is_another_conversations_when_the_roots_differ() -> None:
    chains = TokenChains()
    learn(chains, SYSTEM, "one two three four five six")
    # The whole byte blocks are the same, what follows them is not.
    other = (SYSTEM, "six five four three two one")
    assert prompt(SYSTEM, "one two three four five six").blocks == prompt(*other).blocks
    assert common(found(chains, *other), chain(*other)) >= len(found(chains, *other)) - 2


texts = st.sampled_from([SYSTEM, text("b", 90), text("c", 2_500), "x", "a b c d " * 30, "w" * 200])
prompts = st.lists(texts, min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(prompts, st.sampled_from(["<s>", "<other>"])), max_size=12))
def test_prompt_is_known_whole_when_it_was_learned_last(
    history: list[tuple[list[str], str]],
) -> None:
    chains = TokenChains()
    for messages, template in history:
        learn(chains, *messages, template=template)
        asked = prompt(*messages)
        if not asked.blocks:
            continue
        expected = chain(*messages, template=template).tolist()
        assert expected == found(chains, *messages)


@settings(max_examples=40, deadline=None)
@given(st.lists(prompts, max_size=15), st.integers(10, 600))
def test_memory_is_bounded_and_counted_when_prompts_come(
    history: list[list[str]], most: int
) -> None:
    chains = TokenChains(max_token_blocks=most)
    for messages in history:
        learn(chains, *messages)
        nodes = chains._nodes.values()
        size = sum(1 + len(n.blocks) + (len(n.tail.blocks) if n.tail else 0) for n in nodes)
        assert size == chains.token_blocks <= most


def test_all_is_learned_anew_when_blocks_have_another_size() -> None:
    chains = TokenChains()
    learn(chains, SYSTEM, "hello")
    ids = tokens("other " * 40)
    names = token_blocks(ids, block_tokens=2 * SIZE)
    other = prompt("other " * 40)
    chains.learn(other, names, tokens=len(ids), block_tokens=2 * SIZE)
    assert [] == found(chains, SYSTEM, "hello")
    known = chains.find(other)
    assert known is not None
    assert (names, 2 * SIZE) == (known.blocks, known.block_tokens)


def test_those_not_seen_for_longest_go_when_there_are_too_many() -> None:
    chains = TokenChains(max_token_blocks=400)
    for number in range(50):
        learn(chains, "kept " * 20, "hello")
        learn(chains, text(number, 300), "hello")
    assert found(chains, "kept " * 20, "hello")
    assert not found(chains, text(0, 300), "hello")


@pytest.mark.parametrize("messages", [("x",), ()])
def test_nothing_is_learned_when_a_prompt_has_no_whole_block(messages: tuple[str, ...]) -> None:
    chains = TokenChains()
    learn(chains, *messages)
    assert 0 == len(chains)
