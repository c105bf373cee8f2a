from __future__ import annotations

import asyncio
import datetime
import random
import time
from pathlib import Path

import pytest
from kubernetes.aio.client import Configuration
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from pointsman_kube.client import Kube
from pointsman_kube.config import ConfigurationError, load_configuration
from pointsman_kube.errors import (
    Conflict,
    Fenced,
    Forbidden,
    Gone,
    Invalid,
    KindNotServed,
    KubeError,
    NotFound,
    Unavailable,
)
from pointsman_kube.kinds import CONFIG_MAP, MODEL_POOL, NAMESPACE, POD, Ref, kind_of
from tests.unit.kube.fake_api_server import FakeApiServer, config_map, kube_for, status_object

REF = Ref(kind=CONFIG_MAP, namespace="default", name="one")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, status_object(404, "NotFound", "no", name="one", kind="configmaps"), NotFound),
        (404, "404 page not found", KindNotServed),
        (404, status_object(404, "NotFound", "the server could not find it"), KindNotServed),
        (409, status_object(409, "AlreadyExists", "there"), Conflict),
        (410, status_object(410, "Expired", "old"), Gone),
        (401, status_object(401, "Unauthorized", "who"), Forbidden),
        (403, status_object(403, "Forbidden", "no"), Forbidden),
        (422, status_object(422, "Invalid", "wrong"), Invalid),
        (400, "what", Invalid),
        (500, "ouch", Unavailable),
        (429, "busy", Unavailable),
    ],
)
async def test_raises_the_type_that_callers_tell_apart_when_refused(
    server: FakeApiServer, status: int, body: object, expected: type[KubeError]
) -> None:
    server.refusals = [(status, {}, body)] * 3
    async with kube_for(server, source=random.Random(1)) as kube:
        with pytest.raises(expected) as caught:
            await kube.get(REF)
    assert expected is type(caught.value)
    assert status == caught.value.status
    assert "get configmaps default/one" in str(caught.value)


@pytest.mark.parametrize("status", [429, 503])
async def test_waits_as_told_and_tries_again_when_turned_away(
    server: FakeApiServer, status: int
) -> None:
    server.refusals = [(status, {"Retry-After": "1"}, "later")]
    async with kube_for(server) as kube:
        started = time.monotonic()
        await kube.list(CONFIG_MAP)
        assert 1.0 <= time.monotonic() - started < 2.5
        assert 2 == kube.calls["list", "configmaps"]


async def test_leaves_the_waiting_to_the_caller_when_the_time_is_long(
    server: FakeApiServer,
) -> None:
    server.refusals = [(429, {"Retry-After": "60"}, "later")]
    async with kube_for(server) as kube:
        with pytest.raises(Unavailable) as caught:
            await kube.list(CONFIG_MAP)
    assert 60.0 == caught.value.retry_after_seconds
    assert 1 == len(server.requests)


async def test_sends_a_write_once_when_its_fate_is_unknown(server: FakeApiServer) -> None:
    server.refusals = [(500, {}, "ouch")]
    async with kube_for(server) as kube:
        with pytest.raises(Unavailable):
            await kube.create(config_map("one", 1, "", {}))
    assert 1 == len(server.requests)


async def test_says_unavailable_when_nobody_listens() -> None:
    kube = Kube(Configuration(host="http://127.0.0.1:1"), field_manager="pointsman-test")
    async with kube:
        with pytest.raises(Unavailable, match="get configmaps default/one"):
            await kube.get(REF)


async def test_sends_no_write_when_it_may_not(server: FakeApiServer) -> None:
    async with kube_for(server) as kube:
        kube.fence(lambda: False)
        for write in (
            kube.apply(config_map("one", 1, "", {})),
            kube.create(config_map("one", 1, "", {})),
            kube.delete(REF),
        ):
            with pytest.raises(Fenced):
                await write
        await kube.list(CONFIG_MAP)
    assert ["GET"] == [request.method for request in server.requests]


async def test_asks_for_the_right_to_write_again_when_it_waited(server: FakeApiServer) -> None:
    allowed = True
    server.refusals = [(429, {"Retry-After": "1"}, "later")]
    async with kube_for(server, may_write=lambda: allowed) as kube:
        task = asyncio.create_task(kube.delete(REF))
        await asyncio.sleep(0.3)
        allowed = False
        with pytest.raises(Fenced):
            await task
    assert 1 == len(server.requests)


async def test_deletes_quietly_when_it_is_gone_already(server: FakeApiServer) -> None:
    server.refusals = [(404, {}, status_object(404, "NotFound", "no", name="one"))]
    async with kube_for(server) as kube:
        await kube.delete(REF)


async def test_sends_the_new_token_when_the_file_was_renewed(
    server: FakeApiServer, tmp_path: Path
) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("first")
    authority.write_text("not used over http")
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    loader = InClusterConfigLoader(str(token), str(authority), environ=environment)
    configuration = Configuration()
    loader.load_and_set(configuration)
    # The library's own refresh sets these two again: only the token is under test here.
    loader.host, loader.ssl_ca_cert = server.url, None
    configuration.host, configuration.ssl_ca_cert = server.url, None
    async with Kube(configuration, field_manager="pointsman-test") as kube:
        await kube.list(CONFIG_MAP)
        token.write_text("second")
        loader.token_expires_at = datetime.datetime.now() - datetime.timedelta(seconds=1)  # noqa: DTZ005
        await kube.list(CONFIG_MAP)
    sent = [request.headers["authorization"] for request in server.requests]
    assert ["bearer first", "bearer second"] == sent


async def test_says_what_to_do_when_there_is_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigurationError, match="--kubeconfig"):
        await load_configuration(str(tmp_path / "missing"))


async def test_counts_calls_as_rbac_names_them_when_it_makes_them(server: FakeApiServer) -> None:
    pool = {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "ModelPool",
        "metadata": {"name": "one", "namespace": "default"},
        "status": {},
    }
    seen: list[tuple[str, str, int]] = []
    async with kube_for(
        server, on_call=lambda verb, resource, status, _: seen.append((verb, resource, status))
    ) as kube:
        await kube.apply_status(pool)
    assert [("patch", "modelpools.pointsman.dev/status", 200)] == seen
    assert {("patch", "modelpools.pointsman.dev/status"): 1} == dict(kube.calls)
    [request] = server.requests
    assert "/apis/pointsman.dev/v1alpha1/namespaces/default/modelpools/one/status" == request.path
    assert "pointsman-test" == request.query["fieldManager"]
    assert "application/apply-patch+yaml" == request.headers["content-type"]


def test_makes_the_paths_of_the_api_when_asked() -> None:
    assert "/api/v1/pods" == POD.path()
    assert "/api/v1/namespaces/a/pods/b/log" == POD.path("a", "b", "log")
    assert "/api/v1/namespaces/a" == NAMESPACE.path(None, "a")
    assert "/apis/pointsman.dev/v1alpha1/modelpools" == MODEL_POOL.path()


def test_lists_the_known_kinds_when_one_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"'batch/v1', kind 'Job' is not one of .*v1 ConfigMap"):
        kind_of({"apiVersion": "batch/v1", "kind": "Job"})
