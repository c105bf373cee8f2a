"""Small valid objects that tests change."""

from __future__ import annotations

from typing import Any

from pointsman_api.modelpool import ModelPool
from pointsman_api.routepolicy import RoutePolicy

VLLM = {
    "type": "RayServe",
    "rayServe": {
        "engine": {
            "type": "VLLM",
            "args": ["--dtype=bfloat16"],
            "maxSequences": 8,
            "prefixIndex": "Events",
        },
        "model": {
            "source": {"type": "HuggingFace", "huggingFace": {"repository": "Qwen/Qwen3-8B"}}
        },
        "parallelism": {"tensor": 2},
    },
}
MOE = {
    "type": "RayServe",
    "rayServe": {
        "engine": {"type": "Transformers"},
        "model": {"source": {"type": "HostPath", "hostPath": {"path": "/models/moe"}}},
        "experts": {"implementation": "Pointsman"},
    },
}
SIMULATED = {"type": "RayServe", "rayServe": {"engine": {"type": "Simulated"}}}
EXTERNAL = {
    "type": "External",
    "external": {
        "endpoints": [{"url": "https://api.example.com/v1", "modelName": "big-model"}],
        "credentialSecretRef": {"name": "provider", "key": "token"},
    },
}
PODS = {
    "type": "PodSelector",
    "podSelector": {"selector": {"matchLabels": {"app": "vllm"}}, "port": 8001},
}


def pool_document(
    name: str = "pool", *, namespace: str = "default", created: str | None = None, **spec: Any
) -> dict[str, Any]:
    """A ModelPool as YAML has it; keywords are fields of the spec."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if created:
        metadata["creationTimestamp"] = created
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "ModelPool",
        "metadata": metadata,
        "spec": {"servedModelName": name, "backend": SIMULATED, **spec},
    }


def rule_document(*targets: str, name: str = "default", **fields: Any) -> dict[str, Any]:
    """A rule over pools of the policy's namespace."""
    return {"name": name, "targets": [{"poolRef": {"name": pool}} for pool in targets], **fields}


def policy_document(
    name: str = "policy",
    *rules: dict[str, Any],
    namespace: str = "default",
    created: str | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A RoutePolicy as YAML has it, with one rule over the pool ``pool`` unless some are given."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if created:
        metadata["creationTimestamp"] = created
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "RoutePolicy",
        "metadata": metadata,
        "spec": {
            "modelNames": ["assistant"],
            "rules": list(rules) or [rule_document("pool")],
            **spec,
        },
    }


def pool(name: str = "pool", **fields: Any) -> ModelPool:
    """A parsed ModelPool."""
    return ModelPool.model_validate(pool_document(name, **fields))


def policy(name: str = "policy", *rules: dict[str, Any], **fields: Any) -> RoutePolicy:
    """A parsed RoutePolicy."""
    return RoutePolicy.model_validate(policy_document(name, *rules, **fields))


RICH_POOL = pool_document(
    "rich",
    backend=VLLM,
    contextTokens=32768,
    autoscaling={"maxReplicas": 4},
    rollout={"maxSurge": "25%", "drainTimeout": "1m30s"},
    pricing={"perMillionTokens": {"input": "0.15", "cachedInput": "0.03", "output": "0.6"}},
    quality=[{"task": "Default", "score": "0.7"}, {"task": "code", "score": "0.8"}],
    allowedRoutes={
        "namespaces": {
            "from": "Selector",
            "selector": {
                "matchLabels": {"team": "a"},
                "matchExpressions": [{"key": "stage", "operator": "In", "values": ["prod"]}],
            },
        }
    },
)
RICH_POLICY = policy_document(
    "rich",
    rule_document(
        "pool",
        "rich",
        name="code",
        matches=[
            {
                "headers": [
                    {"name": "X-Task", "value": "code"},
                    {"type": "RegularExpression", "name": "x-team", "value": "a|b"},
                ],
                "inputTokens": {"min": 1, "max": 32000},
            }
        ],
        strategy={"type": "Fused", "fused": {"objective": {"qualityPerDollar": "5"}}},
        slo={"timeToFirstToken": "2s", "timePerOutputToken": "50ms"},
        overload={
            "priority": -5,
            "maxQueueTime": "5s",
            "maxColdStartTime": "1m",
            "maxQueuedRequests": 10,
            "action": "Reject",
        },
        resilience={
            "attempts": 3,
            "retryBudgetPercent": 50,
            "continuation": {"type": "None"},
            "hedging": {"type": "TimeToFirstToken", "budgetPercent": 10},
            "timeouts": {"connect": "500ms", "request": "1h"},
        },
        cacheIsolation="Gateway",
    ),
    {
        "name": "split",
        "targets": [
            {"poolRef": {"name": "pool"}, "weight": 9},
            {"poolRef": {"name": "pool", "namespace": "other"}, "weight": 1},
        ],
        "strategy": {"type": "Weighted"},
        "modelStickiness": {"type": "None"},
    },
    gatewayRef={"name": "edge"},
)
POOL_SAMPLES = (
    RICH_POOL,
    pool_document(),
    pool_document(backend=MOE, replicas=0, rollout={"maxSurge": 1}),
    pool_document(backend=EXTERNAL),
)
POLICY_SAMPLES = (RICH_POLICY, policy_document())
