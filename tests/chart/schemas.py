"""What Kubernetes' own schemas find in objects, and ours for kinds that it does not have."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate

from tests.chart.chart import Object

# Objects whose schemas are those of CRDs of others: what we write of them, by hand.
BY_HAND: dict[str, dict[str, Any]] = {
    "monitoring.coreos.com/v1/ServiceMonitor": {
        "type": "object",
        "required": ["selector", "endpoints"],
        "additionalProperties": False,
        "properties": {
            "selector": {
                "type": "object",
                "required": ["matchLabels"],
                "additionalProperties": False,
                "properties": {"matchLabels": {"type": "object"}},
            },
            "namespaceSelector": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"matchNames": {"type": "array", "items": {"type": "string"}}},
            },
            "endpoints": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "port": {"type": "string"},
                        "path": {"type": "string", "pattern": "^/"},
                        "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                    },
                },
            },
        },
    },
    "gateway.networking.k8s.io/v1/HTTPRoute": {
        "type": "object",
        "required": ["parentRefs", "rules"],
        "additionalProperties": False,
        "properties": {
            "parentRefs": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "object", "required": ["name"]},
            },
            "hostnames": {"type": "array", "items": {"type": "string"}},
            "rules": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "matches": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {
                                    "path": {
                                        "type": "object",
                                        "required": ["type", "value"],
                                        "properties": {
                                            "type": {"enum": ["PathPrefix", "Exact"]},
                                            "value": {"type": "string", "pattern": "^/"},
                                        },
                                    }
                                },
                            },
                        },
                        "timeouts": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "request": {
                                    "type": "string",
                                    "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
                                }
                            },
                        },
                        "backendRefs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name", "port"],
                                "additionalProperties": False,
                                "properties": {
                                    "name": {"type": "string"},
                                    "port": {"type": "integer"},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def faults(objects: list[Object], kubernetes: str) -> list[str]:
    """What Kubernetes' own schemas, unknown fields included, find in objects."""
    found = []
    for each in objects:
        name = f"{each['kind']} {each['metadata']['name']}"
        schema = BY_HAND.get(f"{each['apiVersion']}/{each['kind']}")
        try:
            if schema is not None:
                jsonschema.validate(each["spec"], schema)
            else:
                kubernetes_validate.validate(each, kubernetes, strict=True)
        except jsonschema.ValidationError as error:
            found.append(f"{name}: {'.'.join(map(str, error.absolute_path))}: {error.message}")
    return found
