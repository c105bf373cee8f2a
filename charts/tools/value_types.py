"""What the defaults in values.yaml do not tell of the types of values.

Keys are paths; a ``*`` stands for one name. Where nothing is said here a value has the type of its
default, strings and whole numbers without further limits than "not below 0".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fragment = Mapping[str, Any]

_DNS_LABEL = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
_CIDR = "^[0-9a-fA-F.:]+/[0-9]{1,3}$"
_QUANTITY = "[0-9]+([.][0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?"
_DURATION = "^([0-9]+(h|m|s|ms)){1,4}$"

STRINGS: Fragment = {"type": "object", "additionalProperties": {"type": "string"}}
"""Labels and annotations: names are free, values are strings."""

KUBERNETES_OBJECT: Fragment = {"type": "object", "additionalProperties": True}
"""Handed through to Kubernetes, whose API server checks it."""

KUBERNETES_LIST: Fragment = {
    "type": "array",
    "items": {"type": "object", "minProperties": 1, "additionalProperties": True},
}
"""Handed through to Kubernetes, whose API server checks it."""

QUANTITY: Fragment = {"type": "string", "pattern": f"^{_QUANTITY}$"}
OPTIONAL_QUANTITY: Fragment = {"type": "string", "pattern": f"^({_QUANTITY})?$"}
PORT: Fragment = {"type": "integer", "minimum": 1, "maximum": 65535}
CIDRS: Fragment = {"type": "array", "items": {"type": "string", "pattern": _CIDR}}
PORTS: Fragment = {"type": "array", "minItems": 1, "items": PORT}
AT_LEAST_ONE: Fragment = {"type": "integer", "minimum": 1}
PULL_POLICY: Fragment = {"type": "string", "enum": ["Always", "IfNotPresent", "Never"]}
DIGEST: Fragment = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
LOG_LEVEL: Fragment = {"type": "string", "enum": ["debug", "info", "warning", "error"]}
NAMED_OBJECTS: Fragment = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {"name": {"type": "string", "minLength": 1}},
    },
}

TYPES: Mapping[str, Fragment] = {
    "commonLabels": STRINGS,
    "nameOverride": {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"},
    "fullnameOverride": {"type": "string", "pattern": "^([a-z]([-a-z0-9]*[a-z0-9])?)?$"},
    "imagePullSecrets": NAMED_OBJECTS,
    "image.repository": {"type": "string", "minLength": 1},
    "image.digest": DIGEST,
    "image.pullPolicy": PULL_POLICY,
    # Every component.
    "*.annotations": STRINGS,
    "*.podAnnotations": STRINGS,
    "*.podLabels": STRINGS,
    "*.nodeSelector": STRINGS,
    "*.tolerations": KUBERNETES_LIST,
    "*.affinity": KUBERNETES_OBJECT,
    "*.topologySpreadConstraints": KUBERNETES_LIST,
    "*.resources": KUBERNETES_OBJECT,
    "*.extraEnv": KUBERNETES_LIST,
    "*.extraVolumes": KUBERNETES_LIST,
    "*.extraVolumeMounts": KUBERNETES_LIST,
    "*.podSecurityContext": KUBERNETES_OBJECT,
    "*.securityContext": KUBERNETES_OBJECT,
    "*.replicas": {"type": "integer", "minimum": 0},
    "*.logLevel": LOG_LEVEL,
    "*.serviceAccount.annotations": STRINGS,
    "*.podDisruptionBudget.maxUnavailable": {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]{1,3}%$"},
        ]
    },
    # The operator.
    "operator.extraGateways": {
        "type": "array",
        "uniqueItems": True,
        "items": {"type": "string", "pattern": _DNS_LABEL, "maxLength": 40},
    },
    "operator.engineImages.pullPolicy": PULL_POLICY,
    "operator.engineImages.*": {"type": "string", "minLength": 1},
    "operator.gpu.resource": {"type": "string", "minLength": 1},
    "operator.ray.version": {"type": "string", "pattern": "^[0-9]+[.][0-9]+[.][0-9]+$"},
    "operator.rayHead.cpu": QUANTITY,
    "operator.rayHead.memory": QUANTITY,
    "operator.rayHead.memoryLimit": OPTIONAL_QUANTITY,
    "operator.rayHead.nodeSelector": STRINGS,
    "operator.rayHead.tolerations": KUBERNETES_LIST,
    "operator.rayHead.autoscalerCpu": QUANTITY,
    "operator.rayHead.autoscalerMemory": QUANTITY,
    "operator.leaderElection.leaseSeconds": {"type": "integer", "minimum": 2},
    "operator.leaderElection.renewSeconds": AT_LEAST_ONE,
    # The gateway.
    "gateway.name": {"type": "string", "pattern": _DNS_LABEL, "maxLength": 40},
    "gateway.service.type": {
        "type": "string",
        "enum": ["ClusterIP", "NodePort", "LoadBalancer"],
    },
    "gateway.service.port": PORT,
    "gateway.service.nodePort": {"type": "integer", "minimum": 0, "maximum": 65535},
    "gateway.service.annotations": STRINGS,
    "gateway.service.loadBalancerSourceRanges": CIDRS,
    "gateway.service.externalTrafficPolicy": {"type": "string", "enum": ["", "Cluster", "Local"]},
    "gateway.autoscaling.minReplicas": AT_LEAST_ONE,
    "gateway.autoscaling.maxReplicas": AT_LEAST_ONE,
    "gateway.autoscaling.targetCPUUtilizationPercentage": AT_LEAST_ONE,
    "gateway.autoscaling.scaleDownStabilizationSeconds": {
        "type": "integer",
        "minimum": 0,
        "maximum": 3600,
    },
    "gateway.ingress.annotations": STRINGS,
    "gateway.ingress.hosts": {"type": "array", "items": {"type": "string", "minLength": 1}},
    "gateway.ingress.tls": {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "secretName": {"type": "string"},
                "hosts": {"type": "array", "items": {"type": "string"}},
            },
        },
    },
    "gateway.httpRoute.annotations": STRINGS,
    "gateway.httpRoute.parentRefs": {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "group": {"type": "string"},
                "kind": {"type": "string"},
                "name": {"type": "string", "minLength": 1},
                "namespace": {"type": "string", "minLength": 1},
                "sectionName": {"type": "string", "minLength": 1},
                "port": PORT,
            },
        },
    },
    "gateway.httpRoute.hostnames": {"type": "array", "items": {"type": "string", "minLength": 1}},
    "gateway.httpRoute.requestTimeout": {"type": "string", "pattern": _DURATION},
    # Redis.
    "redis.externalAddress": {"type": "string", "pattern": "^([^:/ ]+:[0-9]{1,5})?$"},
    "redis.auth.key": {"type": "string", "minLength": 1},
    "redis.image.repository": {"type": "string", "minLength": 1},
    "redis.image.digest": DIGEST,
    "redis.image.pullPolicy": PULL_POLICY,
    "redis.persistence.size": QUANTITY,
    # The network.
    "networkPolicy.gatewayClients": KUBERNETES_LIST,
    "networkPolicy.monitoringNamespaceLabels": STRINGS,
    "networkPolicy.apiServer.cidrs": CIDRS,
    "networkPolicy.apiServer.ports": PORTS,
    "networkPolicy.externalPools.cidrs": CIDRS,
    "networkPolicy.externalPools.ports": PORTS,
    "networkPolicy.gatewayExtraEgress": KUBERNETES_LIST,
    "networkPolicy.operatorExtraEgress": KUBERNETES_LIST,
    "serviceMonitor.labels": STRINGS,
    "serviceMonitor.interval": {"type": "string", "pattern": _DURATION},
    "test.timeoutSeconds": AT_LEAST_ONE,
}


def type_of(path: tuple[str, ...]) -> Fragment | None:
    """What is said of a value; None where its default says enough."""
    exact = TYPES.get(".".join(path))
    if exact is not None:
        return exact
    for pattern, fragment in TYPES.items():
        names = pattern.split(".")
        if len(names) == len(path) and all(
            name in ("*", part) for name, part in zip(names, path, strict=True)
        ):
            return fragment
    return None
