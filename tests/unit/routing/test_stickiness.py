from __future__ import annotations

import pytest

from pointsman_serving.routing.stickiness import Stay, Stickiness, conversation_of
from tests.unit.routing.fleet import chat


def remember(stickiness: Stickiness, conversation: int, *, now: float = 0.0) -> None:
    stickiness.remember(conversation, pool="p", replica="a", ttl_seconds=10.0, now=now)


def test_conversation_stays_until_its_time_is_over() -> None:
    stickiness = Stickiness()
    remember(stickiness, 1)
    assert stickiness.find(1, now=9.9) == Stay("p", "a", 10.0)
    assert stickiness.find(1, now=10.0) is None
    assert stickiness.find(2, now=0.0) is None


def test_time_starts_again_when_the_conversation_goes_on() -> None:
    stickiness = Stickiness()
    remember(stickiness, 1)
    remember(stickiness, 1, now=9.0)
    assert stickiness.find(1, now=18.0) is not None


@pytest.mark.pain_24
def test_longest_unused_is_forgotten_when_there_are_too_many() -> None:
    stickiness = Stickiness(limit=3)
    for conversation in (1, 2, 3, 1, 4):
        remember(stickiness, conversation)
    assert len(stickiness) == 3
    kept = [number for number in range(5) if stickiness.find(number, now=0.0)]
    assert kept == [1, 3, 4]


def test_stated_conversation_is_salted_by_model_and_tenant() -> None:
    keys = {
        conversation_of(chat("x", conversation="c")),
        conversation_of(chat("x", conversation="c", tenant="t")),
        conversation_of(chat("x", conversation="c", model="other")),
        conversation_of(chat("x", conversation="d")),
    }
    assert len(keys) == 4
    assert conversation_of(chat("y", conversation="c")) in keys


def test_first_messages_stand_for_the_conversation_when_none_is_stated() -> None:
    assert conversation_of(chat("x")) == conversation_of(chat("x", "answer", "more"))
