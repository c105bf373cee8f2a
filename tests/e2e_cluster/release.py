"""Pointsman in the test cluster: its image, and the chart installed by the real helm."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.cluster.binaries import binary
from tests.cluster.node import recipes
from tests.cluster.node.images import Recipe
from tests.cluster.node.process import ClusterError

if TYPE_CHECKING:
    from tests.cluster.node.cluster import NodeCluster
    from tests.cluster.node.existing import ExistingCluster

CHECKOUT = Path(__file__).resolve().parents[2]
CHART = CHECKOUT / "charts" / "pointsman"
NAMESPACE = "pointsman-system"
RELEASE = "pointsman"
_CONTEXT = (
    "requirements/uv.txt",
    "requirements/gateway.txt",
    "requirements/operator.txt",
    "charts/images/build.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "crds",
    "serving",
    "kernels",
    "operator",
)
_ROLLOUT_SECONDS = 180


def pointsman_image() -> Recipe:
    """The image of operator and gateway, as charts/images/Containerfile makes it."""
    return Recipe(
        name="pointsman",
        base=recipes.base_image(),
        containerfile=(CHECKOUT / "charts/images/Containerfile").read_text(encoding="utf-8"),
        context={name: CHECKOUT / name for name in _CONTEXT},
        volumes=recipes.uv_volumes(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An installed chart."""

    cluster: NodeCluster | ExistingCluster

    @property
    def url(self) -> str:
        """The gateway Service's address, with ``/v1``."""
        address = self.cluster.kubectl(
            *("-n", NAMESPACE, "get", "service", f"{RELEASE}-gateway"),
            *("-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"),
        )
        return f"http://{address}/v1"

    def gateway_pods(self) -> list[str]:
        """Addresses of the gateway's pods that are Ready and not going."""
        pods = self.pods("pointsman.dev/gateway=default")
        return [pod["status"]["podIP"] for pod in pods if _is_ready(pod)]

    def pods(self, selector: str, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
        """Pods as the API shows them."""
        path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"
        items: list[dict[str, Any]] = self.cluster.request("GET", path).body["items"]
        return items

    def install(self, values: dict[str, Any]) -> float:
        """`helm upgrade --install` and wait for both Deployments; seconds."""
        started = time.monotonic()
        self.helm(
            *("upgrade", "--install", RELEASE, str(CHART), "--create-namespace", "--wait"),
            *(f"--timeout={_ROLLOUT_SECONDS}s", "--values=-"),
            stdin=yaml.safe_dump(values),
        )
        return time.monotonic() - started

    def helm(self, *arguments: str, stdin: str | None = None) -> str:
        """What helm prints.

        Raises:
            ClusterError: it failed; with what it said and the state of the pods.
        """
        words = [binary("helm"), f"--kubeconfig={self.cluster.kubeconfig}", f"-n={NAMESPACE}"]
        done = subprocess.run(
            self.cluster.command([*words, *arguments]),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ROLLOUT_SECONDS + 120,
        )
        if done.returncode:
            pods = self.cluster.kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide", check=False)
            raise ClusterError(f"helm {' '.join(arguments)}: {done.stderr.strip()}\n{pods}")
        return done.stdout


def small_values(cluster: NodeCluster | ExistingCluster) -> dict[str, Any]:
    """Values of a small cluster whose images were built here."""
    image = cluster.load(pointsman_image())
    engine = cluster.load(recipes.engine_image())
    environment = cluster.load(recipes.host_environment_image(CHECKOUT / ".venv"))
    redis = cluster.load(recipes.redis_image())
    return {
        "image": _split(image),
        "operator": {
            "allowHostPath": True,
            "engineImages": {
                "simulated": engine,
                "vllm": environment,
                "transformers": environment,
            },
            "gpu": {"enabled": False},
            # What a roll-out leaves idle makes room for the next story.
            "ray": {"workerIdleSeconds": 180},
            "rayHead": {"image": engine, "cpu": "100m", "memory": "512Mi"},
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        },
        "gateway": {
            "lameDuckSeconds": 3,
            "drainSeconds": 60,
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        },
        "redis": {
            "enabled": True,
            "image": _split(redis),
            "persistence": {"enabled": False},
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        },
    }


def _split(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions") or ()
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
