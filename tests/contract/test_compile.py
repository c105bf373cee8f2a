from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_api.compile import check_objects, compile_route_table
from pointsman_api.conditions import Reason
from pointsman_api.kept_routes import kept_routes
from pointsman_api.manifests import load_manifests
from pointsman_api.modelpool import ModelPool
from pointsman_api.route_table import (
    BackendType,
    CacheIsolation,
    CredentialReference,
    ExternalEndpoint,
    FusedObjective,
    HeaderMatch,
    HeaderMatchType,
    Hedging,
    LatencyObjective,
    Overload,
    OverloadAction,
    PoolEntry,
    PrefixIndex,
    Pricing,
    Resilience,
    Route,
    RouteTable,
    Rule,
    RuleMatch,
    Stickiness,
    Strategy,
    StrategyType,
    Target,
)
from pointsman_api.routepolicy import RoutePolicy
from tests.contract.samples import (
    EXTERNAL,
    RICH_POLICY,
    RICH_POOL,
    VLLM,
    policy,
    pool,
    rule_document,
)

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"


def direct(key: str) -> Route:
    return Route(policy=f"pool:{key}", rules=(Rule(name="default", targets=(Target(pool=key),)),))


def test_quickstart_compiles_to_the_table_that_its_files_say() -> None:
    manifests = load_manifests([QUICKSTART])
    compiled = compile_route_table(manifests.pools, manifests.policies)
    assert compiled.problems == ()
    assert compiled.table == RouteTable(
        pools={
            "smollm2": PoolEntry(
                name="smollm2",
                served_model_name="smollm2",
                backend=BackendType.RAY_SERVE,
                engine="VLLM",
                context_tokens=2048,
                sequence_slots=32,
                pricing=Pricing(
                    input_dollars=0.02 / 1e6,
                    cached_input_dollars=0.005 / 1e6,
                    output_dollars=0.04 / 1e6,
                ),
                quality={"Default": 0.5},
            ),
            "smollm2-moe": PoolEntry(
                name="smollm2-moe",
                served_model_name="smollm2-moe",
                backend=BackendType.RAY_SERVE,
                engine="Transformers",
                context_tokens=2048,
                sequence_slots=16,
                pricing=Pricing(
                    input_dollars=0.04 / 1e6,
                    cached_input_dollars=0.04 / 1e6,
                    output_dollars=0.08 / 1e6,
                ),
                quality={"Default": 0.51},
            ),
        },
        routes={
            "assistant": Route(
                policy="assistant",
                rules=(
                    Rule(
                        name="default",
                        targets=(Target(pool="smollm2"), Target(pool="smollm2-moe")),
                        strategy=Strategy(
                            type=StrategyType.FUSED,
                            objective=FusedObjective(
                                quality_per_second=0.01, quality_per_dollar=20.0
                            ),
                            stickiness=Stickiness(ttl_seconds=3600.0),
                        ),
                        overload=Overload(max_queue_seconds=60.0),
                        resilience=Resilience(attempts=2),
                    ),
                ),
            ),
            "smollm2": direct("smollm2"),
            "smollm2-moe": direct("smollm2-moe"),
        },
    )


def test_every_field_reaches_the_table_when_it_is_stated() -> None:
    pools = [
        ModelPool.model_validate(RICH_POOL),
        pool(),
        pool(namespace="other", servedModelName="b", allowedRoutes={"namespaces": {"from": "All"}}),
    ]
    compiled = compile_route_table(pools, [RoutePolicy.model_validate(RICH_POLICY)], gateway="edge")
    assert compiled.problems == ()
    assert compiled.table.pools["rich"] == PoolEntry(
        name="rich",
        served_model_name="rich",
        backend=BackendType.RAY_SERVE,
        engine="VLLM",
        prefix_index=PrefixIndex.EVENTS,
        context_tokens=32768,
        sequence_slots=8,
        pricing=Pricing(
            input_dollars=0.15 / 1e6, cached_input_dollars=0.03 / 1e6, output_dollars=0.6 / 1e6
        ),
        quality={"Default": 0.7, "code": 0.8},
    )
    code, split = compiled.table.routes["assistant"].rules
    assert code == Rule(
        name="code",
        targets=(Target(pool="pool"), Target(pool="rich")),
        matches=(
            RuleMatch(
                headers=(
                    HeaderMatch(name="x-task", value="code"),
                    HeaderMatch(
                        name="x-team", value="a|b", type=HeaderMatchType.REGULAR_EXPRESSION
                    ),
                ),
                min_input_tokens=1,
                max_input_tokens=32000,
            ),
        ),
        strategy=Strategy(
            type=StrategyType.FUSED,
            objective=FusedObjective(quality_per_second=0.01, quality_per_dollar=5.0),
        ),
        slo=LatencyObjective(ttft_seconds=2.0, tpot_seconds=0.05),
        overload=Overload(
            priority=-5,
            max_queue_seconds=5.0,
            max_cold_start_seconds=60.0,
            max_queued_requests=10,
            action=OverloadAction.REJECT,
        ),
        resilience=Resilience(
            attempts=3,
            retry_budget_percent=50.0,
            continues=False,
            hedging=Hedging(enabled=True, budget_percent=10.0),
            connect_timeout_seconds=0.5,
            request_timeout_seconds=3600.0,
        ),
        cache_isolation=CacheIsolation.GATEWAY,
    )
    assert split == Rule(
        name="split",
        targets=(Target(pool="pool", weight=9), Target(pool="other/pool", weight=1)),
        strategy=Strategy(type=StrategyType.WEIGHTED, stickiness=Stickiness(ttl_seconds=0.0)),
    )


def test_defaults_of_the_contract_are_those_of_the_table() -> None:
    table = compile_route_table([pool()], [policy()]).table
    assert table.routes["assistant"].rules == (
        Rule(name="default", targets=(Target(pool="pool"),)),
    )


@pytest.mark.parametrize(
    ("path", "key", "folder", "namespace"),
    [
        ("", "pool", "", "default"),
        ("/run/secrets/provider/token", "pool", "/run/secrets/", "default"),
        ("/s/team/provider/token", "team/pool", "/s", "team"),
    ],
)
def test_external_pool_has_addresses_and_credential_when_it_states_them(
    path: str, key: str, folder: str, namespace: str
) -> None:
    backend = {
        "type": "External",
        "external": {
            "endpoints": [
                *EXTERNAL["external"]["endpoints"],  # type: ignore[index]
                {"url": "http://10.0.0.1:8000/v1/"},
            ],
            "credentialSecretRef": {"name": "provider", "key": "token"},
            "maxOngoingRequests": 7,
        },
    }
    compiled = compile_route_table(
        [pool(namespace=namespace, backend=backend)], [], secrets_folder=folder
    )
    entry = compiled.table.pools[key]
    assert entry == PoolEntry(
        name=key,
        served_model_name="pool",
        backend=BackendType.EXTERNAL,
        sequence_slots=7,
        external_endpoints=(
            ExternalEndpoint(url="https://api.example.com/v1", model_name="big-model"),
            ExternalEndpoint(url="http://10.0.0.1:8000/v1", model_name="pool"),
        ),
        credential=CredentialReference(
            secret_namespace=namespace, secret_name="provider", secret_key="token", path=path
        ),
    )


@pytest.mark.pain_15
def test_older_policy_keeps_the_name_when_two_claim_it() -> None:
    older = policy("z", created=OLD, modelNames=["assistant"])
    newer = policy("a", created=NEW, modelNames=["assistant", "mine"])
    compiled = compile_route_table([pool()], [newer, older])
    assert compiled.table.routes["assistant"].policy == "z"
    assert compiled.table.routes["mine"].policy == "a"
    assert compiled.problems_of(older) == ()
    (problem,) = compiled.problems_of(newer)
    assert (Reason.MODEL_NAME_CONFLICT, ("spec", "modelNames", 0), "assistant") == (
        problem.reason,
        problem.field,
        problem.value,
    )
    assert "the RoutePolicy z already claims this name on the gateway default" in problem.message


def test_names_do_not_conflict_when_the_gateways_differ() -> None:
    policies = [policy("a"), policy("b", gatewayRef={"name": "edge"})]
    assert check_objects([pool()], policies) == ()
    assert compile_route_table([pool()], policies).table.routes["assistant"].policy == "a"
    edge = compile_route_table([pool()], policies, gateway="edge").table
    assert edge.routes["assistant"].policy == "b"


def test_pool_answers_by_its_name_only_on_the_default_gateway() -> None:
    pools = [pool("a", servedModelName="model-a"), pool("b")]
    attached = policy("p", rule_document("b"), gatewayRef={"name": "edge"})
    assert set(compile_route_table(pools, [attached]).table.routes) == {"model-a", "b"}
    edge = compile_route_table(pools, [attached], gateway="edge").table
    assert (set(edge.routes), set(edge.pools)) == ({"assistant"}, {"b"})


def test_policy_takes_the_name_over_when_it_is_a_pools_own() -> None:
    compiled = compile_route_table(
        [pool("a"), pool("b")], [policy("p", rule_document("b"), modelNames=["a"])]
    )
    assert compiled.problems == ()
    assert compiled.table.routes["a"].policy == "p"


@pytest.mark.parametrize("target", ["a", "b"])
def test_policy_of_the_pools_namespace_has_its_name_whatever_their_age(target: str) -> None:
    pools = [pool(name, namespace="team", created=OLD) for name in ("a", "b")]
    item = policy(
        "p", rule_document(target), namespace="team", created=NEW, modelNames=["a", "mine"]
    )
    compiled = compile_route_table(pools, [item])
    assert compiled.problems == ()
    assert compiled.table.routes["a"].policy == "team/p"


def test_pool_keeps_its_name_when_a_newer_policy_of_another_namespace_wants_it() -> None:
    victim = pool("a", namespace="team", created=OLD)
    taker = policy(
        "p", rule_document("b"), namespace="other", created=NEW, modelNames=["a", "mine"]
    )
    compiled = compile_route_table([victim, pool("b", namespace="other")], [taker])
    assert compiled.table.routes["a"] == direct("team/a")
    assert compiled.table.routes["mine"].policy == "other/p"
    assert compiled.problems_of(victim) == ()
    (problem,) = compiled.problems_of(taker)
    assert (Reason.MODEL_NAME_CONFLICT, ("spec", "modelNames", 0), "a") == (
        problem.reason,
        problem.field,
        problem.value,
    )
    assert "the ModelPool team/a already serves this name on the gateway default" in problem.message


def test_older_policy_keeps_the_name_when_a_newer_pool_of_another_namespace_serves_it() -> None:
    late = pool("a", namespace="team", created=NEW)
    holder = policy("p", rule_document("b"), created=OLD, modelNames=["a"])
    compiled = compile_route_table([late, pool("b", created=OLD)], [holder])
    assert compiled.table.routes["a"].policy == "p"
    assert compiled.problems_of(holder) == ()
    (problem,) = compiled.problems_of(late)
    assert (Reason.MODEL_NAME_CONFLICT, ("spec", "servedModelName")) == (
        problem.reason,
        problem.field,
    )
    assert "the RoutePolicy p already claims this name" in problem.message


def test_pool_has_no_problem_when_the_older_policy_of_its_name_uses_it() -> None:
    late = pool("a", namespace="team", created=NEW, allowedRoutes={"namespaces": {"from": "All"}})
    rule = {"name": "default", "targets": [{"poolRef": {"name": "a", "namespace": "team"}}]}
    compiled = compile_route_table([late], [policy("p", rule, created=OLD, modelNames=["a"])])
    assert compiled.problems == ()
    assert compiled.table.routes["a"].policy == "p"


def test_policy_has_its_pools_age_when_another_pool_serves_the_name_too() -> None:
    first = pool("a", namespace="team", servedModelName="qwen", created=OLD)
    second = pool("b", namespace="other", servedModelName="qwen", created="2026-01-15T00:00:00Z")
    item = policy("p", rule_document("a"), namespace="team", created=NEW, modelNames=["qwen"])
    compiled = compile_route_table([first, second], [item])
    assert compiled.table.routes["qwen"].policy == "team/p"
    assert compiled.problems_of(item) == compiled.problems_of(first) == ()
    assert len(compiled.problems_of(second)) == 1


def test_what_cannot_be_read_stays_as_an_earlier_table_has_it() -> None:
    open_to_all = {"namespaces": {"from": "All"}}
    lost = pool("lost", namespace="team", contextTokens=9, allowedRoutes=open_to_all)
    rule = {"name": "default", "targets": [{"poolRef": {"name": "lost", "namespace": "team"}}]}
    unread = policy("unread", rule_document("pool", "gone"), modelNames=["kept"], created=NEW)
    user = policy("user", rule, modelNames=["used"])
    before = compile_route_table([lost, pool(), pool("gone")], [unread, user]).table
    late = policy("late", modelNames=["kept"], created=OLD)
    new = policy("new", rule, namespace="other", modelNames=["new"])
    kept = kept_routes(before, pools=["team/lost"], policies=["unread"])

    compiled = compile_route_table([pool()], [user, late, new], kept=kept)

    table = compiled.table
    assert table.pools["team/lost"] == before.pools["team/lost"]
    assert table.routes["lost"] == before.routes["lost"]
    assert table.routes["used"] == before.routes["used"]
    assert table.routes["kept"].policy == "unread"
    assert table.routes["kept"].rules[0].targets == (Target(pool="pool"),)
    assert compiled.problems_of(user) == ()
    assert [Reason.MODEL_NAME_CONFLICT] == [p.reason for p in compiled.problems_of(late)]
    # Whether the pool would let it in cannot be read.
    assert [Reason.POOL_NOT_FOUND] == [p.reason for p in compiled.problems_of(new)]


def test_older_pool_keeps_the_name_when_two_serve_it() -> None:
    older = pool("z", servedModelName="qwen", created=OLD)
    newer = pool("a", servedModelName="qwen", created=NEW)
    compiled = compile_route_table([newer, older], [policy("p", rule_document("z", "a"))])
    assert compiled.table.routes["qwen"] == direct("z")
    assert set(compiled.table.pools) == {"a", "z"}
    (problem,) = compiled.problems_of(newer)
    assert (problem.reason, problem.field) == (
        Reason.MODEL_NAME_CONFLICT,
        ("spec", "servedModelName"),
    )


def test_target_is_left_out_when_its_pool_is_missing() -> None:
    item = policy("p", rule_document("nope", name="first"), rule_document("pool", "nope"))
    compiled = compile_route_table([pool()], [item])
    first, second = compiled.table.routes["assistant"].rules
    assert first.targets == ()
    assert second.targets == (Target(pool="pool"),)
    assert [problem.reason for problem in compiled.problems] == [Reason.POOL_NOT_FOUND] * 2
    assert compiled.problems[0].field == ("spec", "rules", 0, "targets", 0, "poolRef", "name")
    assert compiled.problems[0].message == "there is no ModelPool nope: known are pool"


@pytest.mark.parametrize(
    ("allowed", "namespaces"),
    [
        (False, {"from": "Same"}),
        (True, {"from": "All"}),
        (True, {"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}),
        (False, {"from": "Selector", "selector": {"matchLabels": {"team": "b"}}}),
    ],
)
def test_other_namespace_may_use_a_pool_when_its_allowed_routes_say_so(
    allowed: bool, namespaces: dict[str, object]
) -> None:
    rule = {"name": "default", "targets": [{"poolRef": {"name": "pool", "namespace": "models"}}]}
    target = pool(namespace="models", allowedRoutes={"namespaces": namespaces})
    compiled = compile_route_table(
        [target],
        [policy("p", rule, namespace="apps")],
        namespace_labels={"apps": {"team": "a"}},
    )
    targets = compiled.table.routes["assistant"].rules[0].targets
    assert targets == ((Target(pool="models/pool"),) if allowed else ())
    assert [problem.reason for problem in compiled.problems] == (
        [] if allowed else [Reason.REF_NOT_PERMITTED]
    )


def test_own_namespace_may_use_a_pool_when_a_selector_leaves_it_out() -> None:
    namespaces = {"from": "Selector", "selector": {"matchLabels": {"team": "b"}}}
    compiled = compile_route_table(
        [pool(namespace="apps", allowedRoutes={"namespaces": namespaces})],
        [policy("p", namespace="apps")],
    )
    assert compiled.problems == ()


_POOLS = [
    pool("a", servedModelName="one", created=NEW),
    pool("b", servedModelName="one", created=OLD),
    pool("c", namespace="team", backend=VLLM),
    pool("d"),
]
_POLICIES = [
    policy("p", rule_document("a", "b"), created=OLD),
    policy("q", rule_document("d", "missing"), modelNames=["assistant", "d"]),
    policy("r", rule_document("c"), namespace="team", created=OLD),
    policy("s", rule_document("d"), gatewayRef={"name": "edge"}),
]


@settings(max_examples=40, deadline=None)
@given(st.permutations(_POOLS), st.permutations(_POLICIES))
def test_table_is_the_same_when_the_objects_come_in_another_order(
    pools: list[ModelPool], policies: list[RoutePolicy]
) -> None:
    expected = compile_route_table(_POOLS, _POLICIES)
    assert compile_route_table(pools, policies) == expected
    assert compile_route_table(pools, policies).table.digest() == expected.table.digest()
