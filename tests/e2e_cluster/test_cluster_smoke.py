"""The ground that the other stories stand on: the node, its pods, and a RayService without us."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.node import recipes
from tests.cluster.node.process import wait_for
from tests.e2e_cluster.bare_ray_service import BareRayService, redis_objects
from tests.e2e_cluster.pools import simulated_pool

if TYPE_CHECKING:
    from tests.cluster.node.cluster import NodeCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_READY_SECONDS = 300.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_LOOK_UP = """
import socket, ssl, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount/"
token = open(account + "token").read()
context = ssl.create_default_context(cafile=account + "ca.crt")
request = urllib.request.Request(
    "https://kubernetes.default/version", headers={"Authorization": "Bearer " + token})
assert urllib.request.urlopen(request, context=context).status == 200
print(socket.gethostbyname("kubernetes.default"))
"""


@pytest.fixture
def namespace(node_cluster: NodeCluster) -> Iterator[str]:
    name = f"smoke-{uuid.uuid4().hex[:6]}"
    node_cluster.create_namespace(name)
    yield name
    # KubeRay cleans Redis up with a Job, which a namespace that is ending takes no more: its
    # finalizer would keep the namespace for ever.
    for kind in ("rayservices", "rayclusters"):
        node_cluster.kubectl("delete", kind, "--all", f"--namespace={name}", "--timeout=100s")
    node_cluster.kubectl("delete", "namespace", name, "--timeout=100s")


def test_pod_finds_the_api_by_name_when_it_runs(node_cluster: NodeCluster, namespace: str) -> None:
    container = {
        "name": "look-up",
        "image": node_cluster.load(recipes.engine_image()),
        "command": ["python3", "-c", _LOOK_UP],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "look-up", "namespace": namespace},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    node_cluster.kubectl("create", "-f", "-", stdin=pod)
    node_cluster.wait(
        "the pod ends well",
        *("get", "pod", "look-up", f"--namespace={namespace}", "--output=jsonpath={.status.phase}"),
        expected="Succeeded",
        timeout_seconds=60,
    )
    service = json.loads(
        node_cluster.kubectl("get", "service", "kubernetes", "--output=json", "-n", "default")
    )
    said = node_cluster.kubectl("logs", "look-up", f"--namespace={namespace}").strip()
    assert service["spec"]["clusterIP"] == said


def test_replica_answers_and_outlives_the_head_when_ray_is_left_to_kuberay(
    node_cluster: NodeCluster, namespace: str
) -> None:
    token = secrets.token_hex(16)
    redis = redis_objects(namespace, node_cluster.load(recipes.redis_image()))
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "access", "namespace": namespace},
        "stringData": {"auth_token": token},
    }
    _apply(node_cluster, *redis, secret)
    service = BareRayService(
        name="bare",
        namespace=namespace,
        image=node_cluster.load(recipes.engine_image()),
        pool=simulated_pool("bare"),
        token_secret="access",
        redis_address=f"redis.{namespace}:6379",
    )
    started = time.monotonic()
    _apply(node_cluster, service.manifest())
    wait_for(
        "the RayService gets Ready",
        lambda: _ready(node_cluster, namespace, "bare"),
        timeout_seconds=_READY_SECONDS,
        poll_seconds=0.5,
    )
    print(f"\nbare RayService: {time.monotonic() - started:.1f} s from apply to Ready")

    replica = _replicas(node_cluster, namespace, token)[0]
    url = f"http://{replica['ip']}:{replica['port']}/bare/v1/models"
    with node_cluster.network():
        assert "bare" == json.loads(_OPENER.open(url, timeout=10).read())["data"][0]["id"]

        head = _pods(node_cluster, namespace, "head")[0]["metadata"]["name"]
        worker = _pods(node_cluster, namespace, "worker")[0]["metadata"]["uid"]
        node_cluster.kubectl("delete", "pod", head, "-n", namespace, "--force", "--grace-period=0")
        killed = time.monotonic()
        while not (again := _replicas(node_cluster, namespace, token, unless=head)):
            assert 200 == _OPENER.open(url, timeout=10).status
            assert time.monotonic() - killed < _READY_SECONDS
            time.sleep(0.2)
        print(f"new head knows the replica {time.monotonic() - killed:.1f} s after the old's death")
    assert [replica["name"]] == [each["name"] for each in again]
    assert [worker] == [pod["metadata"]["uid"] for pod in _pods(node_cluster, namespace, "worker")]


def _apply(cluster: NodeCluster, *objects: dict[str, Any]) -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=items)


def _ready(cluster: NodeCluster, namespace: str, name: str) -> bool:
    reply = cluster.request("GET", f"/apis/ray.io/v1/namespaces/{namespace}/rayservices/{name}")
    conditions = reply.body.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _pods(cluster: NodeCluster, namespace: str, kind: str) -> list[dict[str, Any]]:
    selector = f"labelSelector=ray.io%2Fnode-type%3D{kind}"
    pods = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods?{selector}").body["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def _replicas(
    cluster: NodeCluster, namespace: str, token: str, *, unless: str = ""
) -> list[dict[str, Any]]:
    """Serve's replicas as a head, but not the one named ``unless``, tells them; none without."""
    heads = [
        pod
        for pod in _pods(cluster, namespace, "head")
        if pod["metadata"]["name"] != unless and pod["status"].get("podIP")
    ]
    if not heads:
        return []
    request = urllib.request.Request(
        f"http://{heads[0]['status']['podIP']}:8265/api/serve/applications/",
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        with cluster.network(), _OPENER.open(request, timeout=5) as reply:
            groups = json.load(reply).get("target_groups", ())
    except OSError:
        return []
    targets = [target for group in groups for target in group["targets"]]
    return [target for target in targets if target["name"].startswith("SERVE_REPLICA::")]
