from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_serving.gateway.admission import Admission

RULE = ("policy", "rule")
OTHER = ("policy", "other")


def test_admission_takes_the_first_when_several_wait() -> None:
    queue: Admission[str] = Admission()
    for name in ("a", "b", "c"):
        assert queue.join(RULE, name, limit=10, now=0.0)
    assert queue.first(RULE, 2) == ["a", "b"]
    for name in ("b", "a", "c"):
        queue.admit(RULE, name, now=1.0)
    assert len(queue) == 0


def test_admission_refuses_when_the_limit_is_reached() -> None:
    queue: Admission[str] = Admission()
    assert [queue.join(RULE, name, limit=2, now=0.0) for name in "abc"] == [True, True, False]
    assert queue.join(OTHER, "d", limit=2, now=0.0)


def test_admission_puts_first_who_has_waited_before_when_it_is_tried_again() -> None:
    queue: Admission[str] = Admission()
    queue.join(RULE, "a", limit=9, now=0.0)
    queue.join(RULE, "again", limit=9, now=1.0, front=True)
    assert queue.first(RULE, 1) == ["again"]


def test_admission_forgets_who_leaves_when_not_served() -> None:
    queue: Admission[str] = Admission()
    queue.join(RULE, "a", limit=9, now=0.0)
    assert queue.leave(RULE, "a")
    assert not queue.leave(RULE, "a")
    assert queue.depths() == {}


def test_admission_fails_when_nobody_waits() -> None:
    with pytest.raises(LookupError, match="'a' does not wait"):
        Admission[str]().admit(RULE, "a", now=0.0)


def test_admission_serves_the_rule_first_whose_head_waits_longest() -> None:
    queue: Admission[str] = Admission()
    queue.join(OTHER, "late", limit=9, now=5.0)
    queue.join(RULE, "early", limit=9, now=1.0)
    assert list(queue.rules()) == [RULE, OTHER]


def test_admission_estimates_the_wait_when_departures_are_known() -> None:
    queue: Admission[int] = Admission()
    for number in range(10):
        queue.join(RULE, number, limit=99, now=0.0)
    assert queue.wait_estimate_seconds(RULE, default=1.0, most=60.0) == 1.0
    for second in range(4):
        queue.admit(RULE, second, now=2.0 * second)
    assert queue.wait_estimate_seconds(RULE, default=1.0, most=60.0) == pytest.approx(12.0)
    assert queue.wait_estimate_seconds(RULE, default=1.0, most=5.0) == 5.0


def test_admission_keeps_waiters_when_their_rule_is_gone() -> None:
    queue: Admission[str] = Admission()
    queue.join(RULE, "a", limit=9, now=0.0)
    queue.join(OTHER, "b", limit=9, now=0.0)
    queue.admit(OTHER, "b", now=1.0)
    queue.retain(set())
    assert queue.depths() == {RULE: 1}


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["join", "front", "leave", "admit"]), st.integers(0, 6)),
        max_size=60,
    ),
    limit=st.integers(0, 5),
)
def test_admission_behaves_like_a_list_when_driven_at_random(
    steps: list[tuple[str, int]], limit: int
) -> None:
    queue: Admission[int] = Admission()
    model: list[int] = []
    for step, waiter in steps:
        if step in ("join", "front") and waiter not in model:
            joined = queue.join(RULE, waiter, limit=limit, now=0.0, front=step == "front")
            assert joined == (len(model) < limit)
            if joined:
                model.insert(0 if step == "front" else len(model), waiter)
        elif step == "leave":
            assert queue.leave(RULE, waiter) == (waiter in model)
            model = [each for each in model if each != waiter]
        elif step == "admit" and model:
            chosen = model.pop(waiter % len(model))
            queue.admit(RULE, chosen, now=0.0)
        assert (queue.depth(RULE), queue.first(RULE, 9)) == (len(model), model)
