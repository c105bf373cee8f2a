"""The server that the other tests here rely on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.cluster.api_server import GARBAGE_COLLECTION, ApiServer
from tests.cluster.cluster import Cluster, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAPS = "/api/v1/namespaces/default/configmaps"


def watch_from(server: Cluster, version: str) -> Reply:
    """A watch of one second that goes on from a version."""
    return server.request("GET", f"{MAPS}?watch=true&timeoutSeconds=1&resourceVersion={version}")


def test_data_and_address_stay_when_stopped_and_started(
    stoppable_api_server: ApiServer, namespace: str
) -> None:
    server = stoppable_api_server
    url, token = server.url, server.token
    server.stop()
    with pytest.raises(OSError, match="refused"):
        server.request("GET", "/readyz")
    server.start()
    assert (url, token) == (server.url, server.token)
    assert 200 == server.request("GET", f"/api/v1/namespaces/{namespace}").status


def test_watch_gets_410_when_the_history_is_forgotten(stoppable_api_server: ApiServer) -> None:
    server = stoppable_api_server
    version = server.request("GET", MAPS).body["metadata"]["resourceVersion"]
    server.request("POST", MAPS, {"metadata": {"generateName": "later-"}})
    server.stop(grace_seconds=0)
    server.forget_history()
    server.start()
    reply = watch_from(server, version)
    # As the answer itself, or as an event of the stream.
    assert 410 in (reply.status, (reply.body.get("object") or {}).get("code"))


def test_service_account_may_do_only_what_is_granted(
    api_server: Cluster, namespace: str, tmp_path: Path
) -> None:
    token = api_server.service_account_token(namespace, "reader")
    reader = Cluster(api_server.write_kubeconfig(tmp_path / "reader", token=token))
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    refused = reader.request("GET", path)
    assert 403 == refused.status
    assert f"system:serviceaccount:{namespace}:reader" in refused.message
    rights = ["--verb=list", "--resource=configmaps", f"--namespace={namespace}"]
    api_server.kubectl("create", "role", "reader", *rights)
    grant = ["--role=reader", f"--serviceaccount={namespace}:reader", f"--namespace={namespace}"]
    api_server.kubectl("create", "rolebinding", "reader", *grant)
    for _ in range(50):
        if (reply := reader.request("GET", path)).status == 200:
            break
    assert 200 == reply.status
    assert 403 == reader.request("POST", path, {"metadata": {"name": "x"}}).status


def test_calls_tell_who_did_what_when_read_from_the_audit_log(
    stoppable_api_server: ApiServer, namespace: str
) -> None:
    server = stoppable_api_server
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    server.request("POST", path, {"metadata": {"name": "x"}})
    server.request("GET", f"{path}/x")
    mine = [call for call in server.calls() if call.namespace == namespace]
    told = [(call.verb, call.resource, call.code, call.writes) for call in mine][-2:]
    assert [("create", "configmaps", 201, True), ("get", "configmaps", 200, False)] == told
    assert "admin" == mine[-1].user


def test_nothing_is_left_when_closed() -> None:
    with ApiServer() as server:
        pids = [process.pid for process in server._processes.values()]
        folder = server.folder
    assert 2 == len(pids)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not folder.exists()


@pytest.fixture(scope="module")
def collecting() -> Iterator[ApiServer]:
    with ApiServer(controllers=GARBAGE_COLLECTION) as server:
        yield server


def test_owned_objects_go_with_their_owner_when_the_collector_runs(
    collecting: ApiServer,
) -> None:
    owner = collecting.request("POST", MAPS, {"metadata": {"name": "owner"}}).body["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
    child = {"metadata": {"name": "child", "ownerReferences": [reference]}}
    assert 201 == collecting.request("POST", MAPS, child).status
    collecting.request("DELETE", f"{MAPS}/owner")
    collecting.kubectl("wait", "--for=delete", "configmap/child", "--timeout=30s")
    assert 404 == collecting.request("GET", f"{MAPS}/child").status


def test_namespace_goes_with_what_is_in_it_when_its_controller_runs(
    collecting: ApiServer,
) -> None:
    collecting.create_namespace("gone")
    collecting.request("POST", "/api/v1/namespaces/gone/configmaps", {"metadata": {"name": "x"}})
    collecting.kubectl("delete", "namespace/gone", "--timeout=60s")
    assert 404 == collecting.request("GET", "/api/v1/namespaces/gone").status


def test_kuberay_is_there_or_not_as_the_fixture_says(
    api_server: Cluster, kuberay_installed: None
) -> None:
    kinds = {
        each["kind"] for each in api_server.request("GET", "/apis/ray.io/v1").body["resources"]
    }
    assert {"RayService", "RayCluster"} <= kinds


def test_kuberay_is_missing_when_the_fixture_says_so(
    api_server: Cluster, kuberay_missing: None
) -> None:
    assert 404 == api_server.request("GET", "/apis/ray.io/v1").status
