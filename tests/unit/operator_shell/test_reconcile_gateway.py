from __future__ import annotations

from pointsman_api.routepolicy import RoutePolicy, RoutePolicyStatus
from pointsman_operator.reconcile_gateway import touched_policies
from tests.unit.operator.scenes import made_policy, made_pool
from tests.unit.operator.test_gateway_plan import gateway_plan


def seen(policy: RoutePolicy) -> RoutePolicy:
    """The policy as it is when its status tells of this generation."""
    generation = policy.metadata.generation
    status = RoutePolicyStatus.model_validate({"observedGeneration": generation})
    return policy.model_copy(update={"status": status})


FIRST, SECOND = seen(made_policy()), seen(made_policy("second", pools=("other",)))
POOLS = [made_pool(), made_pool(name="other")]
PLAN = gateway_plan(POOLS, [FIRST, SECOND])


def test_all_policies_are_touched_when_the_plan_is_the_first() -> None:
    assert [("team", "assistant"), ("team", "second")] == touched_policies(
        [FIRST, SECOND], None, PLAN
    )


def test_no_policy_is_touched_when_the_plan_says_the_same() -> None:
    assert [] == touched_policies([FIRST, SECOND], PLAN, PLAN)


def test_only_that_policy_is_touched_whose_pool_is_another() -> None:
    after = gateway_plan([POOLS[0], made_pool(name="other", contextTokens=9)], [FIRST, SECOND])

    assert [("team", "second")] == touched_policies([FIRST, SECOND], PLAN, after)


def test_a_policy_is_touched_when_a_problem_comes_or_its_edit_was_not_seen() -> None:
    edited = made_policy().model_copy(update={"status": None})
    after = gateway_plan(POOLS[:1], [edited, SECOND])

    assert [("team", "assistant"), ("team", "second")] == touched_policies(
        [edited, SECOND], PLAN, after
    )


def test_a_policy_of_another_gateway_is_not_touched() -> None:
    assert [] == touched_policies([made_policy(gateway="inner")], None, PLAN)
