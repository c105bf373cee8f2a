from __future__ import annotations

import pytest

from pointsman_serving.routing.holders import HOLDERS_PER_PREFIX, PrefixHolders, prefix_key
from pointsman_serving.routing.types import ReplicaKey
from tests.unit.routing.fleet import chat, text

A, B, C, D, E = (ReplicaKey("p", name) for name in "abcde")


def test_latest_replicas_come_first_and_are_bounded() -> None:
    holders = PrefixHolders()
    for key in (A, B, C, A, A, D, E):
        holders.note(1, key)
    assert holders.find(1) == (E, D, A, C)
    assert len(holders.find(1)) == HOLDERS_PER_PREFIX
    assert holders.find(2) == ()


@pytest.mark.pain_4
def test_longest_unused_prefix_is_forgotten_when_there_are_too_many() -> None:
    holders = PrefixHolders(limit=2)
    for prefix in (1, 2, 1, 3):
        holders.note(prefix, A)
    assert len(holders) == 2
    assert holders.find(2) == ()


def test_prompts_are_held_together_when_their_first_kilobyte_is_equal() -> None:
    common = text("common", 1_100)
    keys = {prefix_key(chat(common + text(tail, 500)).prompt) for tail in "ab"}
    assert len(keys) == 1
    assert prefix_key(chat("short").prompt) == chat("short").prompt.root
