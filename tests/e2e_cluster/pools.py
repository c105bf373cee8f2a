"""Pools of the tests."""

from __future__ import annotations

from pointsman_api.modelpool import ModelPool


def simulated_pool(name: str, *, replicas: int = 1, max_sequences: int = 16) -> ModelPool:
    """A pool whose replicas need no model and hardly a processor."""
    return ModelPool.model_validate(
        {
            "apiVersion": "pointsman.dev/v1alpha1",
            "kind": "ModelPool",
            "metadata": {"name": name},
            "spec": {
                "servedModelName": name,
                "backend": {
                    "type": "RayServe",
                    "rayServe": {
                        "engine": {"type": "Simulated", "maxSequences": max_sequences},
                    },
                },
                "replicas": replicas,
                "pricing": {"perMillionTokens": {"input": "0.1", "output": "0.1"}},
                "quality": [{"task": "Default", "score": "0.5"}],
            },
        }
    )
