"""Values that people install the chart with, each a case of its own."""

from __future__ import annotations

from typing import Any

from tests.chart.chart import merged

DEFAULTS: dict[str, Any] = {}

PRODUCTION: dict[str, Any] = {
    "image": {"registry": "registry.example.com/team", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "commonLabels": {"team": "serving"},
    "operator": {
        "extraGateways": ["internal"],
        "priorityClassName": "system-cluster-critical",
        "rayHead": {
            "nodeSelector": {"pool": "cheap"},
            "tolerations": [{"key": "cheap", "operator": "Exists"}],
            "memoryLimit": "4Gi",
        },
        "podAnnotations": {"example.com/scrape": "no"},
    },
    "gateway": {
        "autoscaling": {"enabled": True},
        "service": {
            "type": "LoadBalancer",
            "nodePort": 30080,
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "externalTrafficPolicy": "Local",
            "annotations": {"example.com/balancer": "internal"},
        },
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
            "hosts": ["llm.example.com", "models.example.com"],
            "tls": [{"secretName": "gateway-tls", "hosts": ["llm.example.com"]}],
        },
        "httpRoute": {
            "enabled": True,
            "annotations": {"example.com/route": "yes"},
            "parentRefs": [{"name": "public", "namespace": "edge"}],
            "hostnames": ["llm.example.com"],
        },
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "gateway", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {
                            "matchLabels": {"app.kubernetes.io/component": "gateway"}
                        },
                    }
                ]
            }
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 2,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule",
            }
        ],
        "podDisruptionBudget": {"maxUnavailable": "25%"},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
        "extraVolumes": [{"name": "extra", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
        "podLabels": {"example.com/sidecar": "no"},
    },
    "redis": {
        "enabled": True,
        "auth": {"existingSecret": "ray-redis"},
        "persistence": {"storageClassName": "fast"},
    },
    "networkPolicy": {
        "gatewayClients": [{"namespaceSelector": {"matchLabels": {"llm": "client"}}}],
        "monitoringNamespaceLabels": {"kubernetes.io/metadata.name": "monitoring"},
        "apiServer": {"cidrs": ["10.0.0.1/32"]},
        "gatewayExtraEgress": [
            {
                "to": [{"podSelector": {"matchLabels": {"app": "vllm"}}}],
                "ports": [{"protocol": "TCP", "port": 8000}],
            }
        ],
        "operatorExtraEgress": [{"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}]}],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "test": {"model": "assistant"},
}
"""Everything on."""

SECOND_GATEWAY: dict[str, Any] = {
    "crds": {"enabled": False},
    "operator": {"enabled": False},
    "gateway": {"name": "internal"},
}

OPERATOR_ALONE: dict[str, Any] = {"gateway": {"enabled": False}}

QUICKSTART: dict[str, Any] = {
    "operator": {"allowHostPath": True, "replicas": 1, "gpu": {"enabled": False}},
    "gateway": {"replicas": 1},
}

OPEN: dict[str, Any] = {
    "networkPolicy": {"enabled": False},
    "operator": {"podDisruptionBudget": {"enabled": False}},
    "gateway": {"podDisruptionBudget": {"enabled": False}, "ingress": {"enabled": True}},
    "redis": {"enabled": True, "persistence": {"enabled": False}},
}

OTHERS_ACCOUNTS: dict[str, Any] = {
    "operator": {"serviceAccount": {"create": False, "name": "operator-identity"}},
    "gateway": {"serviceAccount": {"create": False, "name": "gateway-identity"}},
}

OPENSHIFT: dict[str, Any] = {
    component: {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
    for component in ("operator", "gateway", "redis")
}
"""The platform chooses the user."""

VALUE_SETS: dict[str, dict[str, Any]] = {
    "defaults": DEFAULTS,
    "production": PRODUCTION,
    "production without autoscaling": merged(
        PRODUCTION, {"gateway": {"autoscaling": {"enabled": False}}}
    ),
    "a second gateway": SECOND_GATEWAY,
    "the operator alone": OPERATOR_ALONE,
    "quickstart": QUICKSTART,
    "open": OPEN,
    "accounts of others": OTHERS_ACCOUNTS,
    "the platform's users": OPENSHIFT,
    "a Redis of others": {"redis": {"externalAddress": "redis.example.com:6379"}},
    "no CRDs": {"crds": {"enabled": False}},
    "CRDs that go": {"crds": {"keep": False}},
}
