"""Every CEL rule holds and breaks as its Python form does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pointsman_api.modelpool import ModelPool
from pointsman_api.routepolicy import RoutePolicy
from pointsman_api.schema import object_schema
from tests.contract.api_server import defaulted, holds, problems, rules_of
from tests.contract.samples import (
    EXTERNAL,
    MOE,
    PODS,
    POLICY_SAMPLES,
    POOL_SAMPLES,
    RICH_POLICY,
    RICH_POOL,
    SIMULATED,
    VLLM,
    policy_document,
    pool_document,
    rule_document,
)

TYPES: dict[str, type[ModelPool] | type[RoutePolicy]] = {
    "ModelPool": ModelPool,
    "RoutePolicy": RoutePolicy,
}


def python_accepts(document: dict[str, Any]) -> bool:
    try:
        TYPES[document["kind"]].model_validate(document)
    except ValidationError:
        return False
    return True


def server_problems(document: dict[str, Any]) -> list[str]:
    return problems(document, object_schema(document["kind"]))


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the field at a dotted path set, or removed where the value is None."""
    result = copy.deepcopy(document)
    node: Any = result
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return result


def source(kind: str, **members: Any) -> dict[str, Any]:
    backend = copy.deepcopy(VLLM)
    backend["rayServe"]["model"]["source"] = {"type": kind, **members}
    return pool_document(backend=backend)


def cache(kind: str, **members: Any) -> dict[str, Any]:
    backend = copy.deepcopy(VLLM)
    backend["rayServe"]["model"]["cache"] = {"type": kind, **members}
    return pool_document(backend=backend)


def pods(**selector: Any) -> dict[str, Any]:
    return pool_document(backend={"type": "PodSelector", "podSelector": {"selector": selector}})


def ray_serve(backend: dict[str, Any], **fields: Any) -> dict[str, Any]:
    backend = copy.deepcopy(backend)
    for name, value in fields.items():
        if value is None:
            del backend["rayServe"][name]
        else:
            backend["rayServe"][name] = value
    return pool_document(backend=backend)


def selector(**fields: Any) -> dict[str, Any]:
    return pool_document(allowedRoutes={"namespaces": fields})


def expression(**fields: Any) -> dict[str, Any]:
    return selector(**{"from": "Selector", "selector": {"matchExpressions": [fields]}})


def one_rule(**fields: Any) -> dict[str, Any]:
    return policy_document("policy", {**rule_document("pool"), **fields})


def header(kind: str, value: str) -> dict[str, Any]:
    return one_rule(matches=[{"headers": [{"type": kind, "name": "x", "value": value}]}])


def tokens(**fields: Any) -> dict[str, Any]:
    return one_rule(matches=[{"inputTokens": fields}])


def targets(strategy: str, *items: dict[str, Any]) -> dict[str, Any]:
    return one_rule(targets=list(items), strategy={"type": strategy})


HF = {"huggingFace": {"repository": "a/b"}}
PVC = {"persistentVolumeClaim": {"claimName": "weights", "path": "qwen/3"}}
BUCKET = {"s3": {"uri": "s3://models/qwen"}}
CLAIM = {"persistentVolumeClaim": {"claimName": "weights"}}
FOLDER = {"hostPath": {"path": "/models/x"}}
HEDGING = {"type": "TimeToFirstToken"}
A, B = {"poolRef": {"name": "a"}}, {"poolRef": {"name": "b"}}
A_ELSEWHERE = {"poolRef": {"name": "a", "namespace": "other"}}

# What the rule's message says -> documents that keep it, documents that break it.
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "huggingFace must be set exactly when type is HuggingFace": (
        [source("HuggingFace", **HF)],
        [source("HuggingFace", **FOLDER), source("HostPath", **FOLDER, **HF)],
    ),
    "persistentVolumeClaim must be set exactly when type is PersistentVolumeClaim": (
        [source("PersistentVolumeClaim", **PVC), cache("PersistentVolumeClaim", **CLAIM)],
        [
            source("PersistentVolumeClaim"),
            source("HuggingFace", **HF, **PVC),
            cache("PersistentVolumeClaim"),
            cache("EmptyDir", **CLAIM),
        ],
    ),
    "s3 must be set exactly when type is S3": (
        [source("S3", **BUCKET)],
        [source("S3"), source("HuggingFace", **HF, **BUCKET)],
    ),
    "hostPath must be set exactly when type is HostPath": (
        [source("HostPath", **FOLDER), cache("HostPath", **FOLDER), cache("EmptyDir")],
        [
            source("HostPath"),
            source("HuggingFace", **HF, **FOLDER),
            cache("HostPath"),
            cache("EmptyDir", **FOLDER),
        ],
    ),
    "must not go up with '..'": (
        [source("HostPath", hostPath={"path": "/a.b/.cache/c..d"})],
        [
            source("HostPath", hostPath={"path": "/models/../etc"}),
            source("PersistentVolumeClaim", persistentVolumeClaim={"claimName": "w", "path": ".."}),
        ],
    ),
    "rayServe must be set exactly when type is RayServe": (
        [pool_document(backend=SIMULATED)],
        [
            pool_document(backend={"type": "RayServe"}),
            pool_document(backend={**SIMULATED, **EXTERNAL}),
        ],
    ),
    "podSelector must be set exactly when type is PodSelector": (
        [pool_document(backend=PODS)],
        [
            pool_document(backend={"type": "PodSelector"}),
            pool_document(backend={**SIMULATED, "podSelector": PODS["podSelector"]}),
        ],
    ),
    "selector must name at least one label: empty, it would take every pod": (
        [
            pods(matchLabels={"app": "vllm"}),
            pods(matchExpressions=[{"key": "app", "operator": "Exists"}]),
        ],
        [pods(), pods(matchLabels={}, matchExpressions=[])],
    ),
    "matchLabels must have keys that are labels, such as app or example.com/app": (
        [pods(matchLabels={"example.com/app": "a.b_c-d"})],
        [pods(matchLabels={"my app": "x"}), pods(matchLabels={"a=b": "x"})],
    ),
    "external must be set exactly when type is External": (
        [pool_document(backend=EXTERNAL)],
        [
            pool_document(backend={"type": "External"}),
            pool_document(backend={**EXTERNAL, **SIMULATED}),
        ],
    ),
    "model must be set unless engine.type is Simulated, which needs no weights": (
        [ray_serve(SIMULATED), ray_serve(VLLM)],
        [ray_serve(VLLM, model=None)],
    ),
    "experts.implementation may be Pointsman only when engine.type is Transformers": (
        [ray_serve(MOE), ray_serve(VLLM, experts={"implementation": "Default"})],
        [ray_serve(VLLM, experts={"implementation": "Pointsman"})],
    ),
    "parallelism other than hosts may be set only when engine.type is VLLM": (
        [
            ray_serve(
                VLLM,
                parallelism={"tensor": 2, "data": 2, "expertParallel": True},
                engine={"type": "VLLM"},
            ),
            ray_serve(SIMULATED, parallelism={"hosts": 2}),
        ],
        [
            ray_serve(MOE, parallelism={"tensor": 2}),
            ray_serve(SIMULATED, parallelism={"tensor": 2, "hosts": 2}),
            ray_serve(MOE, parallelism={"pipeline": 2}),
            ray_serve(MOE, parallelism={"data": 2}),
            ray_serve(MOE, parallelism={"expertParallel": True}),
        ],
    ),
    "parallelism.hosts may be above 1 only when engine.type is VLLM or Simulated": (
        [
            ray_serve(SIMULATED, parallelism={"hosts": 3}),
            ray_serve(MOE, parallelism={"hosts": 1}),
        ],
        [ray_serve(MOE, parallelism={"hosts": 2})],
    ),
    "parallelism.hosts may be above 1 only when parallelism.data is 1": (
        [
            ray_serve(
                VLLM, parallelism={"tensor": 2, "data": 2, "hosts": 1}, engine={"type": "VLLM"}
            )
        ],
        [
            ray_serve(
                VLLM, parallelism={"tensor": 2, "data": 2, "hosts": 2}, engine={"type": "VLLM"}
            )
        ],
    ),
    (
        "parallelism.tensor x parallelism.pipeline must be a multiple of parallelism.hosts: "
        "each host takes the same number of GPUs"
    ): (
        [
            ray_serve(VLLM, parallelism={"tensor": 4, "pipeline": 3, "hosts": 6}),
            ray_serve(VLLM, parallelism={"tensor": 3, "hosts": 1}),
        ],
        [
            ray_serve(VLLM, parallelism={"tensor": 3, "hosts": 2}),
            ray_serve(VLLM, parallelism={"hosts": 2}),
        ],
    ),
    "prefixIndex may be Events only when type is VLLM": (
        [
            ray_serve(VLLM, engine={"type": "VLLM", "prefixIndex": "Events"}),
            ray_serve(MOE, engine={"type": "Transformers", "prefixIndex": "Estimate"}),
        ],
        [ray_serve(MOE, engine={"type": "Transformers", "prefixIndex": "Events"})],
    ),
    "engine.prefixIndex may be Events only when parallelism.data is 1": (
        [
            ray_serve(VLLM, parallelism={"tensor": 4}),
            ray_serve(VLLM, parallelism={"data": 2}, engine={"type": "VLLM"}),
        ],
        [ray_serve(VLLM, parallelism={"data": 2})],
    ),
    "replicas must not be set together with autoscaling, which owns the number": (
        [pool_document(replicas=0), pool_document(autoscaling={"maxReplicas": 2})],
        [pool_document(replicas=1, autoscaling={"maxReplicas": 2})],
    ),
    "replicas, autoscaling and rollout may be set only when backend.type is RayServe": (
        [pool_document(replicas=2, rollout={})],
        [
            pool_document(backend=EXTERNAL, replicas=2),
            pool_document(backend=PODS, replicas=2),
            pool_document(backend=EXTERNAL, rollout={}),
            pool_document(backend=EXTERNAL, autoscaling={"maxReplicas": 2}),
        ],
    ),
    "minReplicas must not be above maxReplicas": (
        [pool_document(autoscaling={"minReplicas": 2, "maxReplicas": 2})],
        [pool_document(autoscaling={"minReplicas": 3, "maxReplicas": 2})],
    ),
    "selector must be set exactly when from is Selector": (
        [selector(**{"from": "Selector", "selector": {}}), selector(**{"from": "All"})],
        [selector(**{"from": "Selector"}), selector(selector={})],
    ),
    "values must be given exactly when operator is In or NotIn": (
        [expression(key="a", operator="Exists"), expression(key="a", operator="In", values=["b"])],
        [
            expression(key="a", operator="Exists", values=["b"]),
            expression(key="a", operator="NotIn"),
            expression(key="a", operator="In", values=[]),
        ],
    ),
    "must be longer than 0s": (
        [one_rule(slo={"timeToFirstToken": "1ms"}), one_rule(overload={"maxQueueTime": "1h1s"})],
        [
            one_rule(slo={"timeToFirstToken": "0s"}),
            pool_document(rollout={"drainTimeout": "0h0ms"}),
        ],
    ),
    "value must be a regular expression that RE2 takes (no look-around, no back-references) when "
    "type is RegularExpression": (
        [header("RegularExpression", "^a.*[0-9]{2}$"), header("Exact", "(")],
        [header("RegularExpression", "(")],
    ),
    "min or max must be set": ([tokens(min=1), tokens(max=0)], [tokens()]),
    "min must not be above max": ([tokens(min=5, max=5)], [tokens(min=6, max=5)]),
    "fused may be set only when type is Fused": (
        [one_rule(strategy={"fused": {}}), one_rule(strategy={"type": "Weighted"})],
        [one_rule(strategy={"type": "Weighted", "fused": {}})],
    ),
    "targets may have a weight only when strategy.type is Weighted": (
        [targets("Weighted", {**A, "weight": 3}), targets("Fused", A, B)],
        [targets("Fused", A, {**B, "weight": 3})],
    ),
    "targets may have a quality only when strategy.type is Fused": (
        [targets("Fused", {**A, "quality": "0.5"})],
        [targets("Weighted", A, {**B, "quality": "0.5"})],
    ),
    "targets must name each pool once": (
        [targets("Fused", A, B, A_ELSEWHERE)],
        [targets("Fused", A, B, A), targets("Fused", A_ELSEWHERE, A_ELSEWHERE)],
    ),
    "targets must have at least one weight above 0": (
        [targets("Weighted", {**A, "weight": 0}, B), targets("Weighted", {**A, "weight": 1})],
        [targets("Weighted", {**A, "weight": 0}, {**B, "weight": 0})],
    ),
    "slo.timeToFirstToken must be set when resilience.hedging.type is TimeToFirstToken": (
        [
            one_rule(resilience={"hedging": HEDGING}, slo={"timeToFirstToken": "2s"}),
            one_rule(resilience={"hedging": {"type": "None"}}),
        ],
        [one_rule(resilience={"hedging": HEDGING}, slo={"timePerOutputToken": "2s"})],
    ),
}


def test_cases_cover_every_rule() -> None:
    rules = {
        rule for kind in TYPES for rule in rules_of(object_schema(kind)) if "oldSelf" not in rule[0]
    }
    assert {message for _, message in rules} == set(CASES)


@pytest.mark.parametrize("message", CASES)
def test_rule_holds_for_both_when_kept(message: str) -> None:
    for document in CASES[message][0]:
        assert server_problems(document) == []
        assert python_accepts(document)


@pytest.mark.parametrize("message", CASES)
def test_rule_is_named_by_both_when_broken(message: str) -> None:
    for document in CASES[message][1]:
        assert message in server_problems(document)
        with pytest.raises(ValidationError) as failure:
            TYPES[document["kind"]].model_validate(document)
        assert message in str(failure.value)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("servedModelName", "a", "b"),
        ("backend.type", "RayServe", "External"),
    ],
)
def test_field_is_immutable_when_the_rule_says_so(path: str, old: str, new: str) -> None:
    schema = object_schema("ModelPool")["properties"]["spec"]
    for part in path.split("."):
        schema = schema["properties"][part]
    rules = [rule["rule"] for rule in schema["x-kubernetes-validations"]]
    assert rules == ["self == oldSelf"]
    assert holds(rules[0], old, old)
    assert not holds(rules[0], new, old)


@pytest.mark.parametrize(
    "pattern", ["(?=a)", "(?<!a)b", r"(a)\1", "a++", "(?>a)", "(?P<x>a)(?P=x)"]
)
def test_regular_expression_is_refused_when_only_python_knows_it(pattern: str) -> None:
    assert not python_accepts(header("RegularExpression", pattern))


@pytest.mark.parametrize("document", [*POOL_SAMPLES, *POLICY_SAMPLES])
def test_defaults_of_types_and_schema_are_equal_when_fields_are_absent(
    document: dict[str, Any],
) -> None:
    parsed = TYPES[document["kind"]].model_validate(document)
    stored = defaulted(document, object_schema(document["kind"]))
    assert _without_empty(stored["spec"]) == _without_empty(
        parsed.spec.model_dump(mode="json", exclude_none=True)
    )


def _without_empty(value: Any) -> Any:
    """Absent and empty are the same to both."""
    if isinstance(value, dict):
        items = {name: _without_empty(child) for name, child in value.items()}
        return {name: child for name, child in items.items() if child not in ("", [], {})}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value


def _paths(value: Any, prefix: str = "") -> list[str]:
    found: list[str] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, child in items:
        path = f"{prefix}.{name}" if prefix else str(name)
        found.append(path)
        if isinstance(child, (dict, list)):
            found += _paths(child, path)
    return found


_REPLACEMENTS = st.one_of(
    st.none(),
    st.integers(-2, 5000),
    st.booleans(),
    st.sampled_from(
        ["", "0", "1", "0.5", "1.5", "0s", "5m", "-1s", "50%", "All", "Weighted", "External", "a/b"]
    ),
    st.sampled_from([[], {}, [1], {"x": 1}, ["a"], 0.5]),
)


@pytest.mark.parametrize("sample", [RICH_POOL, RICH_POLICY], ids=["ModelPool", "RoutePolicy"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_types_and_api_server_agree_when_a_sample_is_changed(
    sample: dict[str, Any], data: st.DataObject
) -> None:
    paths = [path for path in _paths(sample["spec"], "spec") if ".template." not in path]
    document = changed(sample, data.draw(st.sampled_from(paths)), data.draw(_REPLACEMENTS))
    assert python_accepts(document) == (server_problems(document) == [])
