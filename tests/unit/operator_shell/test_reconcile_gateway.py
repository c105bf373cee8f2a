from __future__ import annotations

import copy

import pytest

from pointsman_api.route_config import read_config, route_config_maps
from pointsman_api.route_table import RouteTable
from pointsman_api.routepolicy import RoutePolicy, RoutePolicyStatus
from pointsman_kube.errors import Unavailable
from pointsman_operator.reconcile_gateway import touched_policies, unreadable_status
from tests.unit.operator.scenes import gateway, made_policy, made_pool
from tests.unit.operator.test_gateway_plan import gateway_plan
from tests.unit.operator_shell.gateway_side import GatewaySide


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


NOW = "2026-11-01T00:00:00Z"
READY = {"type": "Ready", "status": "True", "reason": "Ready", "lastTransitionTime": NOW}
KEY = ("team", "assistant")


def with_table() -> tuple[GatewaySide, RouteTable]:
    """A later operator has made a table of a pool and a policy; this one cannot read the policy."""
    side = GatewaySide()
    plan = gateway_plan([made_pool()], [made_policy()])
    for config_map in plan.made.config_maps if plan.made else ():
        side.put(config_map)
    side.take(made_pool(), "ModelPool")
    side.take(made_policy(), "RoutePolicy", rules="of a later version")
    return side, plan.compiled.table


async def test_a_policy_that_cannot_be_read_waits_until_every_gateway_has_a_plan() -> None:
    side, _ = with_table()

    assert 1.0 == await side.reconciler.reconcile_policy(KEY)
    assert {} == side.policy_condition("assistant", "Accepted")

    await side.reconciler.reconcile("default")
    again = await side.reconciler.reconcile_policy(KEY)

    assert again is not None
    assert again > 60
    message = side.policy_condition("assistant", "Accepted")["message"]
    assert message.endswith("what was accepted last stays in force")
    assert {} == side.policy_condition("assistant", "Ready")


async def test_what_cannot_be_read_stays_when_a_write_fails_and_the_table_is_deleted() -> None:
    side, table = with_table()
    side.take(made_pool(name="new"), "ModelPool")
    side.api.refusal = Unavailable("away")
    with pytest.raises(Unavailable):
        await side.reconciler.reconcile("default")
    side.delete_routes()
    side.api.refusal = None

    await side.reconciler.reconcile("default")

    written = read_config(side.config_maps).table
    assert {"team/chat", "team/new"} == set(written.pools)
    assert table.routes["assistant"] == written.routes["assistant"]


async def test_nothing_is_written_when_it_is_not_known_what_stays() -> None:
    side, table = with_table()
    (whole,) = copy.deepcopy(side.config_maps)
    first, *_ = route_config_maps(table, gateway="default", namespace="system", shard_bytes=300)
    side.delete_routes()
    side.put(first)
    side.take(made_pool(name="new"), "ModelPool")
    before = copy.deepcopy(side.api.objects)

    assert await side.reconciler.reconcile("default") is not None
    assert await side.reconciler.reconcile_policy(KEY) is not None

    assert before == side.api.objects

    side.delete_routes()
    side.put(whole)
    await side.reconciler.reconcile("default")

    written = read_config(side.config_maps).table
    assert {"assistant", "chat", "new"} == set(written.routes)


async def test_a_policy_is_ready_when_its_pool_is_and_could_never_be_read() -> None:
    side = GatewaySide()
    pool, policy = made_pool(status={"conditions": [READY]}), made_policy()
    plan = gateway_plan([pool], [policy])
    for config_map in plan.made.config_maps if plan.made else ():
        side.put(config_map)
    side.take(pool, "ModelPool", backend="of a later version")
    side.take(policy, "RoutePolicy")
    side.views = [gateway(hashes=(plan.config_hash,))]

    await side.reconciler.reconcile("default")
    await side.reconciler.reconcile_policy(KEY)

    ready = side.policy_condition("assistant", "Ready")
    assert ("True", "Ready") == (ready["status"], ready["reason"])
