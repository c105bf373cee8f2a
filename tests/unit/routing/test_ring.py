from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from pointsman_serving.routing.ring import VIRTUAL_NODES, DualRing, Ring

NAMES = st.sets(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=8)
KEYS = [random.Random(number).getrandbits(64) for number in range(200)]


def ring_of(*names: str, salt: int = 0) -> Ring:
    ring = Ring(salt=salt)
    ring.set_members(names)
    return ring


@given(NAMES, st.data())
def test_only_the_leavers_keys_move_when_a_member_leaves(
    names: set[str], data: st.DataObject
) -> None:
    leaver = data.draw(st.sampled_from(sorted(names)))
    before, after = ring_of(*names), ring_of(*(names - {leaver}))
    for key in KEYS:
        if before.owner(key) != leaver:
            assert after.owner(key) == before.owner(key)


@given(NAMES)
def test_only_keys_of_the_newcomer_move_when_a_member_joins(names: set[str]) -> None:
    before, after = ring_of(*names), ring_of(*names, "newcomer")
    for key in KEYS:
        assert after.owner(key) in {before.owner(key), "newcomer"}


@given(st.permutations(["a", "b", "c", "d"]))
def test_owner_does_not_depend_on_the_order_of_members(names: list[str]) -> None:
    assert [ring_of(*names).owner(key) for key in KEYS[:20]] == [
        ring_of("a", "b", "c", "d").owner(key) for key in KEYS[:20]
    ]


def test_keys_spread_evenly_over_members() -> None:
    ring = ring_of(*"abcdefgh")
    counts = Counter(ring.owner(random.Random(n).getrandbits(64)) for n in range(4_000))
    assert min(counts.values()) > 4_000 / 8 / 2


@given(NAMES)
def test_two_candidates_are_distinct_when_there_are_two_members(names: set[str]) -> None:
    rings = DualRing()
    rings.set_members(names)
    for key in KEYS[:20]:
        candidates = rings.candidates(key)
        assert len(set(candidates)) == len(candidates) == min(2, len(names))


def test_there_is_no_candidate_when_there_is_no_member() -> None:
    assert DualRing().candidates(1) == ()
    assert ring_of().owner(1) is None
    assert ring_of("a").owner(1, other_than="a") is None


def test_rings_differ_when_their_salts_differ() -> None:
    first, second = ring_of(*"abcd", salt=0), ring_of(*"abcd", salt=1)
    assert [first.owner(key) for key in KEYS] != [second.owner(key) for key in KEYS]


@given(NAMES, st.integers(0, 2**64 - 1))
def test_candidates_are_the_owners_when_the_key_is_asked_for_again(
    names: set[str], key: int
) -> None:
    rings = DualRing()
    rings.set_members(names)
    expected = ring_of(*names).owner(key)
    for near in (key, key ^ 1, key):
        assert len(set(rings.candidates(near))) == min(2, len(names))
    if len(names) > 2:
        assert expected == rings.candidates(key)[0]


@given(NAMES)
def test_owner_is_the_member_of_the_first_point_when_keys_are_at_points(names: set[str]) -> None:
    ring = ring_of(*names)
    points = sorted(
        (xxh3_64_intdigest(f"{name}#{node}".encode(), 0), name)
        for name in names
        for node in range(VIRTUAL_NODES)
    )
    for (point, name), (_, following) in pairwise([*points, points[0]]):
        assert name == ring.owner(point)
        assert following == ring.owner((point + 1) % 2**64)
    assert points[0][1] == ring.owner(0)
    assert ring.owner(2**64 - 1) in names
