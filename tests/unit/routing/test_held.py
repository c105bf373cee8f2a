from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.routing.kv.events import AllCleared, BlocksRemoved, BlocksStored, KvEvent
from pointsman_serving.routing.kv.held import HeldBlocks
from pointsman_serving.routing.kv.token_blocks import token_blocks
from tests.unit.routing.engine_cache import EngineCache

SIZE = 4
tokens = st.lists(st.integers(0, 2), max_size=24)
salts = st.sampled_from(["", "a", "b"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("compute"), tokens, salts),
        st.tuples(st.just("remove"), st.floats(0, 1)),
        st.tuples(st.just("clear")),
    ),
    max_size=40,
)
PROMPT = list(range(16))


def chain(ids: list[int], salt: str = "") -> list[int]:
    return token_blocks(ids, block_tokens=SIZE, salt=salt).tolist()


def held_of(*events: KvEvent, complete: bool = True) -> HeldBlocks:
    held = HeldBlocks(complete=complete)
    held.live = True
    held.apply(events)
    return held


@given(steps, st.lists(st.tuples(tokens, salts), min_size=1, max_size=5))
def test_held_is_what_the_engine_holds_when_blocks_come_and_go_in_any_order(
    history: list[tuple], questions: list[tuple[list[int], str]]
) -> None:
    engine = EngineCache(block_tokens=SIZE)
    held = held_of()
    for step in history:
        match step:
            case ("compute", ids, salt):
                engine.compute(ids, salt)
            case ("remove", where) if engine.blocks:
                engine.remove(list(engine.blocks)[int(where * (len(engine.blocks) - 1))])
            case ("clear",):
                engine.clear()
        held.apply(engine.take())
        assert len(engine.blocks) == len(held)
        for ids, salt in questions:
            assert [block in engine.blocks for block in engine.of(ids, salt)] == [
                name in held for name in chain(ids, salt)
            ]


@given(st.lists(st.tuples(tokens, salts), max_size=30), st.integers(1, 12))
def test_longest_prefix_is_the_engines_when_it_evicts(
    prompts: list[tuple[list[int], str]], capacity: int
) -> None:
    engine = EngineCache(block_tokens=SIZE, capacity=capacity)
    held = held_of()
    for ids, salt in prompts:
        assert engine.cached_tokens(ids, salt) == SIZE * held.held_blocks(chain(ids, salt))
        engine.compute(ids, salt)
        held.apply(engine.take())
    assert held.complete


def test_block_stays_when_one_of_two_copies_goes() -> None:
    engine = EngineCache()
    engine.compute(PROMPT)
    stored = engine.take()
    held = held_of(*stored, *stored)
    gone = BlocksRemoved(hashes=[engine.name(block) for block in engine.of(PROMPT)])
    held.apply([gone])
    assert 4 == held.held_blocks(chain(PROMPT))
    held.apply([gone])
    assert 0 == held.held_blocks(chain(PROMPT))


def test_nothing_is_complete_when_a_beginning_was_missed() -> None:
    engine = EngineCache()
    engine.compute(PROMPT[:8])
    engine.take()
    engine.compute(PROMPT)
    held = held_of(*engine.take())
    assert (0, False) == (held.held_blocks(chain(PROMPT)), held.complete)
    held.apply([AllCleared()])
    assert held.complete


@pytest.mark.parametrize(
    "change", [{"block_tokens": 8}, {"token_ids": PROMPT[:-1]}, {"token_ids": [*PROMPT, 1]}]
)
def test_event_is_left_out_when_it_does_not_fit(change: dict[str, object]) -> None:
    engine = EngineCache()
    engine.compute([9] * 8)
    first = engine.take()
    engine.compute(PROMPT)
    (event,) = engine.take()
    assert isinstance(event, BlocksStored)
    held = held_of(*first, replace(event, **change))  # type: ignore[arg-type]
    assert (2, False) == (len(held), held.complete)


@given(st.integers(1, 20), st.integers(1, 40))
def test_memory_is_bounded_when_an_engine_tells_of_more(most: int, prompts: int) -> None:
    engine = EngineCache(capacity=10_000)
    held = HeldBlocks(complete=True, max_blocks=most)
    chance = random.Random(most)
    for _ in range(prompts):
        engine.compute(chance.choices(range(50), k=20))
        held.apply(engine.take())
        assert len(held) <= most
    assert held.complete is (len(engine.blocks) <= most)


def test_index_is_distrusted_when_the_engine_contradicts_it_again_and_again() -> None:
    engine = EngineCache()
    engine.compute(PROMPT)
    held = held_of(*engine.take())
    for actual in [0] * 7 + [1000] + [0] * 7:
        held.judge(1000.0, actual)
    assert held.usable
    held.judge(1000.0, 0)
    assert not held.usable


def test_index_is_trusted_when_it_is_off_by_a_block() -> None:
    engine = EngineCache()
    engine.compute(PROMPT)
    held = held_of(*engine.take())
    for _ in range(100):
        held.judge(64.0, 32)
    assert held.usable


def test_index_says_nothing_when_it_has_not_caught_up() -> None:
    engine = EngineCache()
    engine.compute(PROMPT)
    held = HeldBlocks(complete=True)
    held.apply(engine.take())
    assert not held.usable
    held.live = True
    assert held.usable
