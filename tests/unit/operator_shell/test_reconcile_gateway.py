from __future__ import annotations

from pointsman_api.routepolicy import RoutePolicy, RoutePolicyStatus
from pointsman_operator.reconcile_gateway import touched_policies, unreadable_status
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


UNREADABLE = {
    "metadata": {"name": "p", "generation": 4},
    "status": {
        "gateways": [{"name": "default"}],
        "conditions": [
            {"type": "Accepted", "status": "True"},
            {"type": "Ready", "status": "True"},
        ],
    },
}


def test_a_policy_that_cannot_be_read_says_so_and_that_it_serves_on() -> None:
    status = unreadable_status(UNREADABLE, "spec.rules[0].x: no", stays=True, now=0.0)

    accepted, ready = status["conditions"]
    assert ("Accepted", "False", "Invalid", 4) == (
        accepted["type"],
        accepted["status"],
        accepted["reason"],
        accepted["observedGeneration"],
    )
    assert "spec.rules[0].x: no" in accepted["message"]
    assert accepted["message"].endswith("what was accepted last stays in force")
    assert ("Ready", "True") == (ready["type"], ready["status"])
    assert [{"name": "default"}] == status["gateways"]


def test_a_policy_that_could_never_be_read_is_not_ready() -> None:
    status = unreadable_status(UNREADABLE, "spec.rules[0].x: no", stays=False, now=0.0)

    assert [("Accepted", "False"), ("Ready", "False")] == [
        (item["type"], item["status"]) for item in status["conditions"]
    ]
    assert status["conditions"][0]["message"].endswith("it is left out of the route table")
