"""What the stories do and look at: pools, policies, replicas, answers."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pointsman_api.endpoint_slices import ReplicaEndpoint, decode_slices
from tests.cluster.cluster import APPLY_PATCH, MERGE_PATCH
from tests.e2e_cluster.release import NAMESPACE, Release

if TYPE_CHECKING:
    from tests.cluster.node.cluster import NodeCluster
    from tests.cluster.node.existing import ExistingCluster

POOLS = "/apis/pointsman.dev/v1alpha1/namespaces/default/modelpools"
POLICIES = "/apis/pointsman.dev/v1alpha1/namespaces/default/routepolicies"
ADMIN_PORT = 9090
GATEWAY_PORT = 8080


class World:
    """The cluster with a release in it; objects are in the namespace ``default``."""

    def __init__(self, cluster: NodeCluster | ExistingCluster, release: Release) -> None:
        self.cluster = cluster
        self.release = release
        self.url = release.url

    # Writing.

    def apply(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply of a pool or policy; what the server answers."""
        folder = POOLS if document["kind"] == "ModelPool" else POLICIES
        name = document["metadata"]["name"]
        path = f"{folder}/{name}?fieldManager=story&force=true"
        reply = self.cluster.request("PATCH", path, document, content_type=APPLY_PATCH)
        assert reply.status in (200, 201), reply.message
        found: dict[str, Any] = reply.body
        return found

    def patch_pool(self, name: str, spec: Mapping[str, Any]) -> None:
        """Merge a part into a pool's spec."""
        reply = self.cluster.request(
            "PATCH", f"{POOLS}/{name}", {"spec": spec}, content_type=MERGE_PATCH
        )
        assert reply.status == 200, reply.message

    # Looking.

    def pool(self, name: str) -> dict[str, Any]:
        """A ModelPool; empty where there is none."""
        reply = self.cluster.request("GET", f"{POOLS}/{name}")
        return dict(reply.body) if reply.status == 200 else {}

    def policy(self, name: str) -> dict[str, Any]:
        """A RoutePolicy; empty where there is none."""
        reply = self.cluster.request("GET", f"{POLICIES}/{name}")
        return dict(reply.body) if reply.status == 200 else {}

    def replicas(self, pool: str) -> dict[str, ReplicaEndpoint]:
        """The pool's replicas as the gateways are told."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
        slices = self.cluster.request("GET", path).body["items"]
        found = decode_slices(slices).get(pool)
        return {} if found is None else {each.replica: each for each in found.endpoints}

    def workers(self, pool: str) -> list[dict[str, Any]]:
        """The pods that run the pool's replicas."""
        return self._ray_pods(pool, "worker")

    def heads(self, pool: str) -> list[dict[str, Any]]:
        """The pods of the pool's Ray heads."""
        return self._ray_pods(pool, "head")

    def _ray_pods(self, pool: str, kind: str) -> list[dict[str, Any]]:
        return self.release.pods(f"pointsman.dev/pool={pool},ray.io/node-type={kind}", "default")

    def gateway_status(self, address: str) -> dict[str, Any]:
        """What one gateway pod says of itself."""
        status, body, _ = self.http("GET", f"http://{address}:{ADMIN_PORT}/status")
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric over all gateways."""
        total = 0.0
        for address in self.release.gateway_pods():
            _, text, _ = self.http("GET", f"http://{address}:{ADMIN_PORT}/metrics")
            for line in text.splitlines():
                if line.startswith(name) and line[len(name) : len(name) + 1] in ("{", " "):
                    total += float(line.rsplit(" ", 1)[1])
        return total

    # Asking.

    def http(
        self,
        method: str,
        url: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 120.0,
    ) -> tuple[int, str, Mapping[str, str]]:
        """One request inside the cluster's network: status, text, headers (lower case)."""
        place = urlsplit(url)
        connection = http.client.HTTPConnection(
            place.hostname or "", place.port, timeout=timeout_seconds
        )
        try:
            with self.cluster.network():
                connection.connect()
            text = None if body is None else json.dumps(body)
            sent = {"content-type": "application/json", **(headers or {})}
            target = f"{place.path}?{place.query}" if place.query else place.path
            connection.request(method, target, body=text, headers=sent)
            reply = connection.getresponse()
            named = {key.lower(): value for key, value in reply.getheaders()}
            return reply.status, reply.read().decode(errors="replace"), named
        finally:
            connection.close()

    def ask(
        self, model: str, prompt: str = "What is a train?", *, base: str = "", **fields: Any
    ) -> tuple[int, str, Mapping[str, str]]:
        """One chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}
        url = f"{base or self.url}/chat/completions"
        return self.http("POST", url, {"max_tokens": 8, **body})

    # Waiting.

    def until_ready(self, pool: str, replicas: int, *, timeout_seconds: float = 300.0) -> float:
        """Until the pool is Ready at its generation with so many replicas; seconds."""

        def holds() -> bool:
            found = self.pool(pool)
            status = found.get("status") or {}
            return (
                status.get("observedGeneration") == found["metadata"]["generation"]
                and status.get("readyReplicas", 0) == replicas
                and status.get("replicas", 0) == replicas
                and condition(found, "Ready")[0] == "True"
            )

        return self.until(
            holds, f"{pool} is Ready with {replicas}", timeout_seconds, lambda: self.shown(pool)
        )

    def until(
        self,
        holds: Callable[[], bool],
        what: str,
        timeout_seconds: float,
        explain: Callable[[], str] = str,
    ) -> float:
        """Wait until something holds; seconds it took."""
        started = time.monotonic()
        while not _calmly(holds):
            if time.monotonic() - started > timeout_seconds:
                raise AssertionError(f"not in {timeout_seconds:.0f} s: {what}\n{explain()}")
            time.sleep(0.1)
        return time.monotonic() - started

    def shown(self, pool: str) -> str:
        """Everything about a pool that helps to see why it does not get on."""
        commands = (
            ("get", "mp,rp,rayservices,rayclusters,pods", "-o", "wide"),
            ("-n", NAMESPACE, "get", "pods,endpointslices"),
            ("-n", NAMESPACE, "logs", "-l", "app.kubernetes.io/component=operator", "--tail=30"),
        )
        status = json.dumps(self.pool(pool).get("status"), indent=1)
        return "\n".join([status, *(self.cluster.kubectl(*w, check=False) for w in commands)])


def _calmly(holds: Callable[[], bool]) -> bool:
    """Whether it holds; an API server that does not answer for once says that it does not."""
    try:
        return holds()
    except OSError:
        return False


def condition(found: Mapping[str, Any], kind: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition; empty where it is not there."""
    for each in (found.get("status") or {}).get("conditions") or ():
        if each["type"] == kind:
            return each["status"], each["reason"], each.get("message", "")
    return "", "", ""


def pool_document(name: str, *, args: tuple[str, ...] = (), **spec: Any) -> dict[str, Any]:
    """A ModelPool with the Simulated engine, which speaks 30 tokens a second.

    Its pods ask for little, so that two processors hold the workers that a roll-out leaves idle
    and the next story's pools too.
    """
    engine = {
        "type": "Simulated",
        "args": ["--iteration-seconds=0.03", *args],
        "maxSequences": 16,
    }
    container = {
        "name": "engine",
        "resources": {"requests": {"cpu": "20m", "memory": "384Mi"}},
    }
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "ModelPool",
        "metadata": {"name": name},
        "spec": {
            "servedModelName": name,
            "backend": {
                "type": "RayServe",
                "rayServe": {"engine": engine, "template": {"spec": {"containers": [container]}}},
            },
            "contextTokens": 8192,
            "rollout": {"drainTimeout": "60s"},
            **spec,
        },
    }


def policy_document(name: str, model: str, *pools: str, **rule: Any) -> dict[str, Any]:
    """A RoutePolicy with one rule whose conversations keep no model."""
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "RoutePolicy",
        "metadata": {"name": name},
        "spec": {
            "modelNames": [model],
            "rules": [
                {
                    "name": "default",
                    "targets": [{"poolRef": {"name": pool}} for pool in pools],
                    "modelStickiness": {"type": "None"},
                    **rule,
                }
            ],
        },
    }
