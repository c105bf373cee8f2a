from __future__ import annotations

from dataclasses import replace

from pointsman_operator.observed import PoolObserved
from pointsman_operator.plan import PoolPlan
from pointsman_operator.refusal import FIRST_SECONDS, MOST_SECONDS, Refusal, refused
from tests.unit.operator.scenes import NOW, made_pool, planned, running

WRONG = made_pool(ray_serve={"template": {"spec": {"tolerationz": []}}})


def once(plan: PoolPlan, before: Refusal | None = None, *, now: float = NOW) -> Refusal:
    return refused(before, plan, "no", applied="chat-old", now=now)


def test_the_same_is_not_tried_again_before_its_time() -> None:
    plan = planned(WRONG)
    refusal = once(plan)
    # The tokens that a plan carries are new in each round.
    assert refusal.holds(planned(WRONG), now=NOW + FIRST_SECONDS - 1)
    assert plan.revision == refusal.revision_at(NOW + FIRST_SECONDS - 1)
    assert not refusal.holds(plan, now=NOW + FIRST_SECONDS)
    assert "" == refusal.revision_at(NOW + FIRST_SECONDS)


def test_another_plan_is_tried_at_once() -> None:
    assert not once(planned(WRONG)).holds(planned(made_pool()), now=NOW)
    edited = once(planned(made_pool()), once(planned(WRONG)), now=NOW + 1)
    assert (planned(made_pool()).revision, NOW + 1 + FIRST_SECONDS) == (
        edited.revision,
        edited.retry_at,
    )


def test_the_wait_doubles_up_to_its_limit_when_the_same_is_refused_again() -> None:
    plan, now, waits = planned(WRONG), NOW, []
    refusal: Refusal | None = None
    for _ in range(8):
        refusal = once(plan, refusal, now=now)
        waits.append(refusal.retry_at - now)
        now = refusal.retry_at
    assert [15.0, 30.0, 60.0, 120.0, 240.0, 480.0, MOST_SECONDS, MOST_SECONDS] == waits


def test_both_wait_when_what_was_accepted_last_is_refused_too() -> None:
    new = planned(WRONG)
    fallback = replace(planned(made_pool()), revision="chat-old")
    both = once(fallback, once(new), now=NOW + 1)
    assert new.revision == both.revision_at(NOW + 2)
    assert both.holds(fallback, now=NOW + 2)
    assert NOW + FIRST_SECONDS == both.retry_at


def test_the_last_good_revision_is_planned_when_the_new_one_is_refused() -> None:
    pool = made_pool()
    observed, good = running(pool, replicas=2)
    wanted = planned(WRONG, observed)
    assert not wanted.is_empty
    observed = replace(observed, refused="no", refused_revision=wanted.revision)
    plan = planned(WRONG, observed)
    assert (True, True, good.revision) == (plan.is_empty, plan.held_back, plan.revision)
    scaled = planned(WRONG, observed, replicas=5)
    assert ["RayService"] == [item["kind"] for item in scaled.apply]
    assert "tolerationz" not in str(scaled.apply)


def test_nothing_is_planned_when_the_first_revision_is_refused() -> None:
    observed = PoolObserved(now=NOW, refused="no", refused_revision=planned(WRONG).revision)
    plan = planned(WRONG, observed)
    assert (True, True, "") == (plan.is_empty, plan.held_back, plan.revision)
    corrected = planned(made_pool(), observed)
    assert not corrected.held_back
    assert not corrected.is_empty
