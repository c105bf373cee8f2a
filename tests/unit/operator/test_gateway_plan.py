from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_api.conditions import Reason
from pointsman_api.route_config import RouteConfigError, read_config
from pointsman_operator.gateway_plan import (
    NOTHING_UNREADABLE,
    REMEMBERED_TABLES,
    GatewayPlan,
    MadeTable,
    PolicyMemory,
    Unreadable,
    plan_gateway,
    policy_parts,
)
from tests.unit.operator.scenes import external_pool, made_policy, made_pool

TOKENS = {("team", "chat-access"): {"auth_token": "x", "replica_token": "dG9rZW4="}}


def gateway_plan(
    pools: Any,
    policies: Any = (),
    *,
    name: str = "default",
    secrets: Any = TOKENS,
    live: GatewayPlan | None = None,
    credentials: Any = None,
    config_maps: Any = (),
    memory: PolicyMemory | None = None,
    owner: Any = None,
    made: MadeTable | None = None,
    labels: Any = None,
    unreadable: Unreadable = NOTHING_UNREADABLE,
) -> GatewayPlan:
    applied = [] if live is None else copy.deepcopy(list(live.apply))
    maps = [item for item in applied if item["kind"] == "ConfigMap"]
    found = [item for item in applied if item["kind"] == "Secret"]
    return plan_gateway(
        name,
        pools,
        policies,
        namespace="system",
        namespace_labels=labels or {},
        secrets=secrets,
        config_maps=[*maps, *config_maps],
        credentials=found[0] if found else credentials,
        memory=memory or PolicyMemory(),
        owner=owner,
        made=made,
        unreadable=unreadable,
    )


def keys(plan: GatewayPlan) -> dict[str, str]:
    found: dict[str, str] = next(item for item in plan.apply if item["kind"] == "Secret")["data"]
    return found


def test_the_gateway_gets_its_keys_before_the_table_that_needs_them() -> None:
    plan = gateway_plan([made_pool()], [made_policy()])

    assert ["Secret", "ConfigMap"] == [item["kind"] for item in plan.apply]
    assert {"system"} == {item["metadata"]["namespace"] for item in plan.apply}
    assert {"default"} == {
        item["metadata"]["labels"]["pointsman.dev/gateway"] for item in plan.apply
    }


def test_the_config_maps_read_as_the_table_that_was_compiled() -> None:
    plan = gateway_plan([made_pool()], [made_policy()])

    table = read_config([item for item in plan.apply if item["kind"] == "ConfigMap"]).table

    assert plan.compiled.table == table
    assert plan.config_hash == table.digest()
    assert {"assistant", "chat"} == set(table.routes)


def test_nothing_is_written_when_nothing_changed() -> None:
    first = gateway_plan([made_pool()], [made_policy()])

    again = gateway_plan([made_pool()], [made_policy()], live=first)

    assert ((), ()) == (again.apply, again.delete)


def test_the_table_alone_is_written_when_a_policy_changes() -> None:
    first = gateway_plan([made_pool()], [made_policy()])

    after = gateway_plan([made_pool()], [made_policy(names=("other",))], live=first)

    assert ["ConfigMap"] == [item["kind"] for item in after.apply]


def test_a_part_of_the_table_that_is_needed_no_more_goes() -> None:
    first = gateway_plan([made_pool()])
    second = {"kind": "ConfigMap", "metadata": {"name": "pointsman-default-routes-1"}}

    after = gateway_plan([made_pool()], live=first, config_maps=[second])

    assert ["configmaps system/pointsman-default-routes-1"] == [str(ref) for ref in after.delete]


def test_a_bad_policy_loses_its_part_and_hurts_no_other() -> None:
    good = made_policy(created="2026-01-01T00:00:00Z")
    late = made_policy("late", names=("assistant", "mine"), created="2026-02-01T00:00:00Z")
    lost = made_policy("lost", pools=("nowhere",))

    plan = gateway_plan([made_pool()], [late, lost, good])

    assert "team/assistant" == plan.compiled.table.routes["assistant"].policy
    assert "team/late" == plan.compiled.table.routes["mine"].policy
    assert () == plan.compiled.problems_of(good)
    assert [Reason.MODEL_NAME_CONFLICT] == [p.reason for p in plan.compiled.problems_of(late)]
    assert [Reason.POOL_NOT_FOUND] == [p.reason for p in plan.compiled.problems_of(lost)]


def test_the_keys_are_the_replicas_tokens_and_the_providers_keys() -> None:
    pools = [made_pool(), external_pool(credentialSecretRef={"name": "key", "key": "api"})]
    secrets = {**TOKENS, ("team", "key"): {"api": "a2V5", "more": "eA=="}}

    assert {"token.team.chat": "dG9rZW4=", "credential.team_key_api": "a2V5"} == keys(
        gateway_plan(pools, secrets=secrets)
    )


def test_a_key_is_left_out_when_it_is_too_long_to_be_one() -> None:
    huge = external_pool("huge", credentialSecretRef={"name": "huge", "key": "api"})
    pool = external_pool(credentialSecretRef={"name": "key", "key": "api"})
    secrets = {("team", "key"): {"api": "a2V5"}, ("team", "huge"): {"api": "QUFB" * 100_000}}

    plan = gateway_plan([huge, pool], secrets=secrets)

    assert {"credential.team_key_api": "a2V5"} == keys(plan)


def test_a_key_is_taken_back_when_its_secret_is_gone() -> None:
    pool = external_pool(credentialSecretRef={"name": "key", "key": "api"})
    first = gateway_plan([pool], secrets={("team", "key"): {"api": "a2V5"}})

    after = gateway_plan([pool], secrets={("team", "key"): None}, live=first)

    assert {} == keys(after)


def test_a_key_stays_when_its_secret_was_not_looked_up_yet() -> None:
    pool = external_pool(credentialSecretRef={"name": "key", "key": "api"})
    first = gateway_plan([pool], secrets={("team", "key"): {"api": "a2V5"}})

    assert () == gateway_plan([pool], secrets={}, live=first).apply


def test_the_key_of_a_pool_that_is_gone_is_taken_back() -> None:
    first = gateway_plan([made_pool()])

    assert {} == keys(gateway_plan([], live=first))


def test_a_gateway_gets_the_keys_of_its_own_pools_alone() -> None:
    pools = [made_pool(), made_pool(name="other")]
    secrets = {**TOKENS, ("team", "other-access"): {"replica_token": "b3RoZXI="}}

    plan = gateway_plan(pools, [made_policy(gateway="inner")], name="inner", secrets=secrets)

    assert ["token.team.chat"] == list(keys(plan))


def test_names_that_are_too_long_for_a_key_are_told_and_hurt_no_other() -> None:
    long = external_pool(credentialSecretRef={"name": "s" * 240, "key": "api"})
    secrets = {**TOKENS, ("team", "s" * 240): {"api": "a2V5"}}

    plan = gateway_plan([made_pool(), long], secrets=secrets)

    assert ["token.team.chat"] == list(keys(plan))
    assert [Reason.INVALID] == [item.reason for item in plan.compiled.problems_of(long)]


def test_a_policys_part_changes_with_its_own_pools_alone() -> None:
    policies = [made_policy(), made_policy("second", pools=("other",))]
    before = gateway_plan([made_pool(), made_pool(name="other")], policies)
    after = gateway_plan([made_pool(), made_pool(name="other", contextTokens=9)], policies)

    parts = [policy_parts(plan.compiled.table) for plan in (before, after)]
    assert parts[0]["team/assistant"] == parts[1]["team/assistant"]
    assert parts[0]["team/second"] != parts[1]["team/second"]
    assert before.config_hash != after.config_hash


def test_only_the_last_tables_are_remembered() -> None:
    memory = PolicyMemory()
    for tokens in range(1, REMEMBERED_TABLES + 10):
        plan = gateway_plan([made_pool(contextTokens=tokens)], memory=memory)
        memory = plan.memory

    assert REMEMBERED_TABLES == len(memory.tables)
    assert plan.config_hash == memory.tables[-1][0]
    assert (
        memory
        == gateway_plan([made_pool(contextTokens=REMEMBERED_TABLES + 9)], memory=memory).memory
    )


@given(order=st.permutations(range(4)))
def test_the_order_of_the_objects_makes_no_difference(order: list[int]) -> None:
    pools = [made_pool(name=name) for name in ("a", "b", "c", "d")]
    policies = [
        made_policy(
            f"p{n}",
            pools=("a", "b"),
            names=("same", f"n{n}"),
            created=f"2026-01-0{n + 1}T00:00:00Z",
        )
        for n in range(4)
    ]

    assert gateway_plan(pools, policies) == gateway_plan(
        [pools[n] for n in order], [policies[n] for n in order]
    )


def test_everything_is_owned_when_there_is_an_owner() -> None:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "operator", "uid": "1"}
    pools = [made_pool()]
    live = gateway_plan(pools)

    plan = gateway_plan(pools, live=live, owner=owner)

    assert [("Secret", [owner]), ("ConfigMap", [owner])] == [
        (item["kind"], item["metadata"]["ownerReferences"]) for item in plan.apply
    ]
    assert () == gateway_plan(pools, live=plan, owner=owner).apply


def test_a_policys_part_is_known_when_its_table_is_remembered() -> None:
    plan = gateway_plan([made_pool()], [made_policy()])

    part = plan.memory.part(plan.config_hash, "team/assistant")

    assert part == policy_parts(plan.compiled.table)["team/assistant"]
    assert "" == plan.memory.part(plan.config_hash, "team/another")
    assert None is plan.memory.part("unknown", "team/assistant")


def test_a_pools_own_route_is_no_policys_part() -> None:
    plan = gateway_plan([made_pool()], [made_policy()])

    assert {"team/assistant"} == set(policy_parts(plan.compiled.table))
    assert 2 == len(plan.compiled.table.routes)


def test_a_table_is_made_anew_when_an_object_or_a_namespace_is_another_and_not_else() -> None:
    pools, policies = [made_pool()], [made_policy()]
    made = gateway_plan(pools, policies).made

    def again(*pools: Any, labels: Any = None) -> MadeTable | None:
        return gateway_plan(pools, policies, made=made, labels=labels).made

    assert made is again(made_pool(status={"replicas": 3}))
    assert made is not again(made_pool(generation=2))
    assert made is not again(made_pool(), made_pool(name="other"))
    assert made is not again(made_pool(), labels={"team": {"tier": "gold"}})


def test_what_an_operator_that_starts_cannot_read_stays_in_the_table_with_its_keys() -> None:
    lost = external_pool(credentialSecretRef={"name": "key", "key": "api"})
    pools, policies = [made_pool(), lost], [made_policy(), made_policy("other", pools=("chat",))]
    secrets = {**TOKENS, ("team", "key"): {"api": "a2V5"}}
    before = gateway_plan(pools, policies, secrets=secrets)

    after = gateway_plan(
        pools[:1],
        policies[:1],
        secrets={},
        live=before,
        unreadable=Unreadable(
            pools=frozenset({lost.key}), policies=frozenset({"team/other", "team/new"})
        ),
    )

    assert ((), ()) == (after.apply, after.delete)
    assert before.compiled.table == after.compiled.table
    assert before.config_hash == after.config_hash


def test_what_cannot_be_read_is_left_out_when_there_is_no_table_that_has_it() -> None:
    unreadable = Unreadable(pools=frozenset({"team/lost"}), policies=frozenset({"team/lost"}))

    plan = gateway_plan([made_pool()], [made_policy()], unreadable=unreadable)

    assert {"team/chat"} == set(plan.compiled.table.pools)
    assert {"assistant", "chat"} == set(plan.compiled.table.routes)


def test_what_cannot_be_read_stays_when_the_table_has_an_entry_that_cannot_either() -> None:
    pools = [made_pool(), made_pool(name="strange")]
    before = gateway_plan(pools, [made_policy(), made_policy("other")])
    (config_map,) = [item for item in before.apply if item["kind"] == "ConfigMap"]
    document = json.loads(config_map["data"]["table.json"])
    document["pools"]["team/strange"]["backend"] = "OfALaterVersion"
    document["routes"]["other"]["rules"][0]["overload"] = {"action": "OfALaterVersion"}
    text = config_map["data"]["table.json"] = json.dumps(document)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    config_map["metadata"]["annotations"]["pointsman.dev/config-hash"] = digest

    after = gateway_plan(
        [],
        config_maps=[config_map],
        unreadable=Unreadable(
            pools=frozenset({"team/chat", "team/strange"}),
            policies=frozenset({"team/assistant", "team/other"}),
        ),
    )

    assert {"team/chat"} == set(after.compiled.table.pools)
    assert {"assistant", "chat"} == set(after.compiled.table.routes)
    for name, route in after.compiled.table.routes.items():
        assert before.compiled.table.routes[name] == route


def test_what_cannot_be_read_stays_as_it_was_made_last_when_the_table_is_lost() -> None:
    before = gateway_plan([made_pool()], [made_policy()])
    unreadable = Unreadable(policies=frozenset({"team/assistant"}))

    after = gateway_plan([made_pool(generation=2)], made=before.made, unreadable=unreadable)

    assert before.compiled.table == after.compiled.table


def test_nothing_is_planned_when_a_table_is_there_and_what_stays_of_it_is_not_known() -> None:
    before = gateway_plan([made_pool()], [made_policy()])
    (config_map,) = [item for item in before.apply if item["kind"] == "ConfigMap"]
    config_map["metadata"]["annotations"]["pointsman.dev/shards"] = "2"

    assert gateway_plan([made_pool()], config_maps=[config_map]).apply
    with pytest.raises(RouteConfigError, match="part 1 of 2"):
        gateway_plan(
            [made_pool()],
            config_maps=[config_map],
            unreadable=Unreadable(policies=frozenset({"team/assistant"})),
        )


def test_the_field_is_named_when_a_credential_cannot_be_taken() -> None:
    long = external_pool(credentialSecretRef={"name": "s" * 240, "key": "api"})
    huge = external_pool("huge", credentialSecretRef={"name": "huge", "key": "api"})
    secrets = {("team", "huge"): {"api": "QUFB" * 100_000}}

    found = gateway_plan([long, huge], secrets=secrets).compiled.problems

    assert [("huge", "key", "api"), ("provider", "name", "s" * 240)] == [
        (item.key.removeprefix("team/"), item.field[-1], item.value) for item in found
    ]
