"""A RayService as a user of KubeRay alone would write it, of one pool with the Simulated engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pointsman_serving.engines.application import serve_application, serve_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman_api.modelpool import ModelPool

CHECKOUT = Path(__file__).resolve().parents[2]
REPLICA_RESOURCE = "pointsman_replica"
"""One on each worker, and each replica takes one: so a pod holds one replica."""
AGENT_PORT = 52365
_PACKAGES = {
    "crds": "pointsman_api",
    "serving": "pointsman_serving",
    "kernels": "pointsman_kernels",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BareRayService:
    """What varies between the tests; :meth:`manifest` is the object."""

    name: str
    namespace: str
    image: str
    pool: ModelPool
    token_secret: str
    redis_address: str = ""
    idle_seconds: int = 300
    """A worker is idle from its start until it has a replica: this must outlast that."""
    worker_replicas: int = 1
    pre_stop_seconds: int = 0
    """How long a worker's preStop hook sleeps."""
    labels: Mapping[str, str] | None = None
    """Of the workers' pods: a change is a change of the cluster."""

    def manifest(self) -> dict[str, Any]:
        """The RayService."""
        cluster: dict[str, Any] = {
            "rayVersion": "2.60.0",
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "idleTimeoutSeconds": self.idle_seconds,
                "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
            },
            "authOptions": {"mode": "token", "secretName": self.token_secret},
            "headGroupSpec": {
                "rayStartParams": {
                    "num-cpus": "0",
                    "dashboard-host": "0.0.0.0",
                    "object-store-memory": "200000000",
                },
                # The autoscaler beside it heeds no SIGTERM, and a new head waits for its end.
                "template": {"spec": {**self._pod("head"), "terminationGracePeriodSeconds": 5}},
            },
            "workerGroupSpecs": [self._workers()],
        }
        if self.redis_address:
            cluster["gcsFaultToleranceOptions"] = {"redisAddress": self.redis_address}
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "serveConfigV2": yaml.safe_dump(self._serve_config(), sort_keys=False),
                "rayClusterConfig": cluster,
            },
        }

    def _serve_config(self) -> dict[str, object]:
        application = serve_application(self.pool, resources={REPLICA_RESOURCE: 1})
        return serve_config([application], host="0.0.0.0", proxy_port=8000)

    def _workers(self) -> dict[str, Any]:
        pod = self._pod("engine")
        engine = pod["containers"][0]
        # KubeRay's own probe asks Serve's proxy, which runs on the head alone, and Ray's health
        # page is slow while there is no head: that the port is open says that the node is up.
        engine["readinessProbe"] = {
            "tcpSocket": {"port": AGENT_PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
        }
        if self.pre_stop_seconds:
            command = ["sleep", str(self.pre_stop_seconds)]
            engine["lifecycle"] = {"preStop": {"exec": {"command": command}}}
            pod["terminationGracePeriodSeconds"] = self.pre_stop_seconds + 15
        template: dict[str, Any] = {"spec": pod}
        if self.labels:
            template["metadata"] = {"labels": dict(self.labels)}
        return {
            "groupName": "replicas",
            "replicas": self.worker_replicas,
            "minReplicas": 0,
            "maxReplicas": 100,
            "rayStartParams": {
                "resources": f'"{{\\"{REPLICA_RESOURCE}\\": 1}}"',
                "object-store-memory": "200000000",
            },
            "template": template,
        }

    def _pod(self, container: str) -> dict[str, Any]:
        path = ":".join(f"/opt/pointsman/{folder}" for folder in _PACKAGES)
        variables = {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1", "PYTHONPATH": path}
        return {
            "containers": [
                {
                    "name": container,
                    "image": self.image,
                    "env": [{"name": name, "value": value} for name, value in variables.items()],
                    "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
                    "volumeMounts": [
                        {
                            "name": folder,
                            "mountPath": f"/opt/pointsman/{folder}/{package}",
                            "readOnly": True,
                        }
                        for folder, package in _PACKAGES.items()
                    ],
                }
            ],
            "volumes": [
                {"name": folder, "hostPath": {"path": str(CHECKOUT / folder / package)}}
                for folder, package in _PACKAGES.items()
            ],
        }


def redis_objects(namespace: str, image: str) -> list[dict[str, Any]]:
    """A Redis that keeps nothing on disk, as ``redis.NAMESPACE:6379``."""
    labels = {"app": "redis"}
    container = {
        "name": "redis",
        "image": image,
        "args": ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no"],
        "ports": [{"containerPort": 6379}],
        "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1},
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "redis", "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [container]},
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "redis", "namespace": namespace},
            "spec": {"selector": labels, "ports": [{"port": 6379}]},
        },
    ]
