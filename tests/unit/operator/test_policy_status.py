from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointsman_api.routepolicy import RoutePolicyStatus
from pointsman_operator.gateway_plan import GatewayPlan
from pointsman_operator.observed import GatewayView
from pointsman_operator.policy_status import policy_events, policy_status
from tests.unit.operator.scenes import NOW, gateway, made_policy, made_pool
from tests.unit.operator.test_gateway_plan import gateway_plan

POLICY = made_policy()


def status_of(
    plan: GatewayPlan | None,
    view: GatewayView | None,
    *,
    policy: Any = POLICY,
    ready: Mapping[str, bool] | None = None,
    before: Mapping[str, Any] | None = None,
    now: float = NOW,
) -> dict[str, Any]:
    status = policy_status(
        policy,
        plan,
        view,
        known_gateways=("default",),
        pool_ready={"team/chat": True} if ready is None else ready,
        now=now,
        stale_seconds=10,
        before=before,
    )
    RoutePolicyStatus.model_validate(status)
    return status


def said(status: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {item["type"]: (item["status"], item["reason"]) for item in status["conditions"]}


def message(status: Mapping[str, Any], kind: str) -> str:
    return next(str(item["message"]) for item in status["conditions"] if item["type"] == kind)


def test_a_policy_that_every_gateway_runs_says_so_in_every_condition() -> None:
    plan = gateway_plan([made_pool()], [POLICY])

    status = status_of(plan, gateway(hashes=(plan.config_hash,) * 2))

    assert {
        "Accepted": ("True", "Accepted"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
        "Programmed": ("True", "Programmed"),
        "Ready": ("True", "Ready"),
    } == said(status)
    assert [
        {
            "name": "default",
            "configHash": plan.config_hash,
            "readyGateways": 2,
            "totalGateways": 2,
        }
    ] == status["gateways"]


def test_an_unchanged_state_gives_an_equal_status_at_any_later_time() -> None:
    plan = gateway_plan([made_pool()], [POLICY])
    view = gateway(hashes=(plan.config_hash,))
    before = status_of(plan, view)

    assert before == status_of(plan, view, before=before, now=NOW + 5)


def test_a_policy_is_not_programmed_until_every_gateway_runs_it() -> None:
    plan = gateway_plan([made_pool()], [POLICY])

    status = status_of(plan, gateway(hashes=(plan.config_hash, "older")))

    assert ("False", "GatewaysNotReady") == said(status)["Programmed"]
    assert "1 of 2" in message(status, "Programmed")
    assert ("False", "GatewaysNotReady") == said(status)["Ready"]


def test_an_old_report_proves_nothing() -> None:
    plan = gateway_plan([made_pool()], [POLICY])

    status = status_of(plan, gateway(hashes=(plan.config_hash,) * 2, ages=(0.5, 60)))

    assert 1 == status["gateways"][0]["readyGateways"]


def test_a_gateway_without_a_pod_is_told() -> None:
    plan = gateway_plan([made_pool()], [POLICY])

    assert ("False", "GatewaysNotReady") == said(status_of(plan, gateway(hashes=())))["Programmed"]


def test_nothing_changes_for_a_policy_when_another_pools_part_of_the_table_does() -> None:
    first = gateway_plan([made_pool()], [POLICY])
    before = status_of(first, gateway(hashes=(first.config_hash,) * 2))
    second = gateway_plan([made_pool(), made_pool(name="other")], [POLICY], memory=first.memory)
    half = gateway(hashes=(first.config_hash, second.config_hash))

    assert first.config_hash != second.config_hash
    assert before == status_of(second, half, before=before)


def test_an_edit_is_programmed_only_when_its_own_table_runs() -> None:
    first = gateway_plan([made_pool()], [POLICY])
    before = status_of(first, gateway(hashes=(first.config_hash,)))
    edited = made_policy(names=("assistant", "more"))
    second = gateway_plan([made_pool()], [edited], memory=first.memory)

    late = status_of(second, gateway(hashes=(first.config_hash,)), policy=edited, before=before)
    done = status_of(second, gateway(hashes=(second.config_hash,)), policy=edited, before=late)

    assert ("False", "GatewaysNotReady") == said(late)["Programmed"]
    assert second.config_hash == late["gateways"][0]["configHash"]
    assert ("True", "Programmed") == said(done)["Programmed"]


def test_a_name_that_an_older_policy_has_is_told() -> None:
    late = made_policy("late", names=("assistant", "mine"), created="2026-02-01T00:00:00Z")
    plan = gateway_plan([made_pool()], [late, POLICY])
    view = gateway(hashes=(plan.config_hash,))

    status = status_of(plan, view, policy=late)

    assert ("False", "ModelNameConflict") == said(status)["Accepted"]
    assert "spec.modelNames[0] is 'assistant'" in message(status, "Accepted")
    assert ("False", "ModelNameConflict") == said(status)["Ready"]
    assert ("True", "Ready") == said(status_of(plan, view))["Ready"]


def test_a_pool_that_is_missing_is_told_with_the_known_ones() -> None:
    policy = made_policy(pools=("chat", "chatt"))
    plan = gateway_plan([made_pool()], [policy])

    status = status_of(plan, gateway(hashes=(plan.config_hash,)), policy=policy)

    assert ("False", "PoolNotFound") == said(status)["ResolvedRefs"]
    assert "known are team/chat" in message(status, "ResolvedRefs")
    assert ("True", "Ready") == said(status)["Ready"]


def test_a_policy_without_any_pool_left_is_not_ready() -> None:
    policy = made_policy(pools=("chatt",))
    plan = gateway_plan([made_pool()], [policy])

    status = status_of(plan, gateway(hashes=(plan.config_hash,)), policy=policy)

    assert ("False", "ReplicasNotReady") == said(status)["Ready"]


def test_a_policy_is_not_ready_when_no_pool_of_a_rule_is() -> None:
    plan = gateway_plan([made_pool()], [POLICY])

    status = status_of(plan, gateway(hashes=(plan.config_hash,)), ready={"team/chat": False})

    assert ("False", "ReplicasNotReady") == said(status)["Ready"]
    assert "the rule default" in message(status, "Ready")
    assert ("True", "Programmed") == said(status)["Programmed"]


def test_a_gateway_that_the_operator_does_not_have_is_told_with_the_known_ones() -> None:
    policy = made_policy(gateway="inner")

    status = status_of(None, None, policy=policy)

    assert ("False", "GatewayNotFound") == said(status)["Accepted"]
    assert "known are default" in message(status, "Accepted")
    assert ("False", "GatewayNotFound") == said(status)["Ready"]


def test_transitions_are_told_as_events() -> None:
    plan = gateway_plan([made_pool()], [POLICY])
    good = status_of(plan, gateway(hashes=(plan.config_hash,)))
    bad = status_of(plan, gateway(hashes=("older",)), before=good)

    assert {"Warning"} == {note.type for note in policy_events(good, bad)}
    assert {"Normal"} == {note.type for note in policy_events(bad, good)}
    assert () == policy_events(good, good)


def test_a_field_in_a_list_is_named_as_kubectl_does() -> None:
    older = made_policy("older", names=("assistant",), created="2025-01-01T00:00:00Z")
    plan = gateway_plan([made_pool()], [POLICY, older])

    told = message(status_of(plan, gateway()), "Accepted")

    assert told.startswith("spec.modelNames[0] is 'assistant': the RoutePolicy team/older")


def test_a_missing_pool_is_named_with_its_place_in_the_rules() -> None:
    told = message(status_of(gateway_plan([], [POLICY]), gateway()), "ResolvedRefs")

    assert told.startswith("spec.rules[0].targets[0].poolRef.name is 'team/chat': ")
