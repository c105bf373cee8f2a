"""The deck of faults."""

from __future__ import annotations

from collections import Counter

from tests.chaos.faults import Deck, FaultKind


def test_deck_has_every_kind_by_its_share_when_it_is_new() -> None:
    deck = Deck(list(FaultKind), count=60, seed=1)
    drawn = Counter(deck.draw(room=True).kind for _ in range(60))
    assert {
        FaultKind.KILL: 18,
        FaultKind.RESET: 15,
        FaultKind.STOP: 9,
        FaultKind.HANG: 9,
        FaultKind.DROP: 9,
    } == drawn


def test_deck_takes_nobody_away_when_there_is_no_room() -> None:
    deck = Deck(list(FaultKind), count=20, seed=1)
    assert {FaultKind.RESET} == {deck.draw(room=False).kind for _ in range(20)}
    assert 0 == len(deck)


def test_deck_leaves_a_kind_out_when_the_machine_cannot_do_it() -> None:
    kinds = [kind for kind in FaultKind if kind is not FaultKind.DROP]
    deck = Deck(kinds, count=60, seed=1)
    drawn = Counter(deck.draw(room=True).kind for _ in range(60))
    assert set(kinds) == set(drawn)
    assert 60 == drawn.total()


def test_deck_is_the_same_when_the_seed_is() -> None:
    one, same, other = (Deck(list(FaultKind), count=30, seed=seed) for seed in (5, 5, 6))
    cards = [one.draw(room=True) for _ in range(30)]
    assert cards == [same.draw(room=True) for _ in range(30)]
    assert cards != [other.draw(room=True) for _ in range(30)]
