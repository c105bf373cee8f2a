from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from pointsman_api.labels import GATEWAY_LABEL
from pointsman_operator.gateway_reports import GatewayReports
from pointsman_operator.observed import GatewayReport, PoolReport
from pointsman_operator.scaling import Load, load_of
from tests.machine import needs_ipv6
from tests.unit.operator_shell.raw_pod import RawPod, document, endless, plain, raw_pod

LIMIT = 100_000
GOING = "2026-11-01T00:00:00Z"
Pod = dict[str, Any]


def gateway_pod(name: str, address: str, *, going: bool = False, phase: str = "Running") -> Pod:
    metadata: dict[str, Any] = {"name": name, "labels": {GATEWAY_LABEL: "default"}}
    if going:
        metadata["deletionTimestamp"] = GOING
    return {"metadata": metadata, "status": {"podIP": address, "phase": phase}}


def status_of(
    queued: float = 0, open_streams: float = 0, *, draining: bool = False
) -> dict[str, object]:
    replica = {"state": "Closed", "openStreams": open_streams}
    return {
        "configHash": "abc",
        "ready": not draining,
        "draining": draining,
        "pools": {"team/chat": {"queued": queued, "replicas": {"r": replica}}},
    }


class Cluster:
    """The gateways' pods, and what the operator makes of them."""

    def __init__(self, port: int) -> None:
        self.pods: dict[str, Pod] = {}
        self.told: list[tuple[GatewayReport | None, GatewayReport | None]] = []
        self.polled: list[bool] = []
        self.reports = GatewayReports(
            lambda: list(self.pods.values()),  # type: ignore[arg-type, return-value]
            names=("default",),
            port=port,
            changed=lambda _, before, after: self.told.append((before, after)),
            polled=self.polled.append,
            interval_seconds=0.02,
            timeout_seconds=0.5,
            most_bytes=LIMIT,
        )

    def put(self, pod: Pod) -> None:
        name = pod["metadata"]["name"]
        old = self.pods.get(name)
        self.pods[name] = pod
        self.reports.pod_changed(("system", name), old, pod)

    def delete(self, name: str) -> None:
        self.reports.pod_changed(("system", name), self.pods.pop(name), None)

    @property
    def said(self) -> dict[str, PoolReport]:
        (view,) = self.reports.views()
        return {report.pod: report.pools["team/chat"] for report in view.reports}

    @property
    def load(self) -> Load:
        now = max((report.read_at for report in self.reports.views()[0].reports), default=0.0)
        return load_of("team/chat", self.reports.views(), now=now, stale_seconds=5.0)


@contextlib.asynccontextmanager
async def asking(port: int) -> AsyncIterator[Cluster]:
    cluster = Cluster(port)
    task = asyncio.create_task(cluster.reports.queue.run())
    try:
        yield cluster
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await cluster.reports.close()


@contextlib.asynccontextmanager
async def two_pods() -> AsyncIterator[tuple[RawPod, RawPod]]:
    """Two addresses that answer on the same port."""
    async with raw_pod(lambda: document(status_of(1, 2))) as one:
        two = RawPod("127.0.0.2", one.port, lambda: document(status_of(3, 4)))
        server = await asyncio.start_server(two.serve, two.host, two.port)
        try:
            yield one, two
        finally:
            server.close()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_requests_of_a_gateway_count_until_it_ends_when_it_is_draining() -> None:
    async with two_pods() as (one, two), asking(one.port) as cluster:
        cluster.put(gateway_pod("stays", one.host))
        cluster.put(gateway_pod("goes", two.host))
        await until(lambda: cluster.load == Load(requests=10))
        cluster.put(gateway_pod("goes", two.host, going=True))
        two.answer = lambda: document(status_of(0, 5, draining=True))
        await until(lambda: cluster.load == Load(requests=8))
        (view,) = cluster.reports.views()
        # It is none of those that have to run the newest table.
        assert ("stays",) == view.pods
        assert [False] == [report.ready for report in view.reports if report.pod == "goes"]
        two.answer = lambda: document(status_of(0, 1, draining=True))
        await until(lambda: cluster.load == Load(requests=4))
        cluster.delete("goes")
        assert Load(requests=3) == cluster.load
        assert cluster.told[-1][1] is None


async def test_a_gateway_that_ends_is_no_news_for_the_log_when_it_stops_answering() -> None:
    async with two_pods() as (one, two), asking(one.port) as cluster:
        with capture_logs() as logs:
            cluster.put(gateway_pod("goes", two.host, going=True))
            await until(lambda: "goes" in cluster.said)
            two.answer = lambda: [b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"]
            asked = len(two.requests)
            await until(lambda: len(two.requests) > asked + 3)
    assert [] == logs
    assert False not in cluster.polled


async def test_an_evicted_gateway_is_not_waited_for_when_its_pod_stays_as_an_object() -> None:
    async with two_pods() as (one, two), asking(one.port) as cluster:
        cluster.put(gateway_pod("stays", one.host))
        cluster.put(gateway_pod("evicted", two.host))
        await until(lambda: len(cluster.said) == 2)
        cluster.put(gateway_pod("evicted", two.host, phase="Failed"))
        await until(lambda: len(cluster.said) == 1)
        assert Load(requests=3, complete=True) == cluster.load
        asked = len(two.requests)
        await asyncio.sleep(0.1)
        assert asked == len(two.requests)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: endless(b" " * 1000), f"at most {LIMIT} are read"),
        (lambda: plain(b" " * (LIMIT + 1)), f"has {LIMIT + 1} bytes; at most {LIMIT} are read"),
        (
            lambda: plain(gzip.compress(b" " * 10_000_000), "content-encoding: gzip"),
            "is compressed (gzip)",
        ),
        (lambda: plain(b"[" * 90_000), "nested too deeply"),
        (lambda: document([1]), "must be an object"),
        (lambda: plain(json.dumps(status_of(float("inf"))).encode()), "OverflowError"),
        (lambda: [b"HTTP/1.1 302 Go\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n"], "status 302"),
    ],
)
async def test_the_last_good_report_stays_and_the_cause_is_told_once_when_a_gateway_answers_badly(
    answer: Callable[[], Any], said: str
) -> None:
    async with raw_pod(lambda: document(status_of(1, 2))) as pod, asking(pod.port) as cluster:
        with capture_logs() as logs:
            cluster.put(gateway_pod("one", pod.host))
            await until(lambda: "one" in cluster.said)
            pod.answer = answer
            await until(lambda: cluster.polled.count(False) >= 3, seconds=20.0)
            assert PoolReport(queued=1, open_streams=2, serving_replicas=1) == cluster.said["one"]
    (told,) = logs
    assert ("one", "gateway does not report") == (told["pod"], told["event"])
    assert said in told["cause"]
    assert f"http://127.0.0.1:{pod.port}/status" in told["cause"]


async def test_a_gateway_is_asked_when_its_address_is_of_version_six() -> None:
    needs_ipv6()
    answer = document(status_of(1, 2))
    async with raw_pod(lambda: answer, host="::1") as pod, asking(pod.port) as cluster:
        cluster.put(gateway_pod("one", "::1"))
        await until(lambda: "one" in cluster.said)
    assert f"host: [::1]:{pod.port}" in pod.requests[0].lower()
