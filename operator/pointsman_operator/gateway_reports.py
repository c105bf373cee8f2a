"""Asks every gateway pod for its status, each second, and keeps the last good answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import aiohttp
import structlog

from pointsman_api.labels import GATEWAY_LABEL
from pointsman_kube.identity import Key
from pointsman_kube.kinds import Object
from pointsman_kube.mirror import Mirror
from pointsman_operator.objects import is_going, metadata_of
from pointsman_operator.observed import GatewayReport, GatewayView, read_gateway_status
from pointsman_operator.pod_answer import MOST_BYTES, PodAnswerError, read_json, session_for_pods
from pointsman_operator.work_queue import WorkQueue

log = structlog.get_logger(__name__)

ReportChanged = Callable[[str, GatewayReport | None, GatewayReport | None], None]
"""Told the gateway and its pod's report before and after; None: there is none."""


class GatewayReports:
    """What the gateways say.

    A pod that is going is asked until it is gone: it takes no new requests, and what it still has
    is load as before.

    Args:
        pods: the gateways' pods.
        names: the gateways that exist.
        port: TCP port of ``/status`` in each pod.
        changed: told when a report says something else than the one before.
        polled: told of every question whether it was answered.
        interval_seconds: between two questions to one pod.
        timeout_seconds: for one question, its whole answer included.
        most_bytes: longer answers are not read.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        pods: Callable[[], Mirror],
        *,
        names: tuple[str, ...],
        port: int,
        changed: ReportChanged,
        polled: Callable[[bool], None] = lambda ok: None,
        interval_seconds: float = 1.0,
        timeout_seconds: float = 2.0,
        most_bytes: int = MOST_BYTES,
        now: Callable[[], float] = time.time,
        source: random.Random | None = None,
    ) -> None:
        self._pods = pods
        self._names = names
        self._port = port
        self._changed = changed
        self._polled = polled
        self._interval_seconds = interval_seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._most_bytes = most_bytes
        self._now = now
        self._source = source or random.Random()
        self._session: aiohttp.ClientSession | None = None
        self._reports: dict[tuple[str, str], GatewayReport] = {}
        self._away: set[tuple[str, str]] = set()
        self._asked: set[tuple[str, str]] = set()
        self.queue = WorkQueue(
            "gateway reports", self._poll, workers=16, timeout_seconds=timeout_seconds * 2
        )

    def pod_changed(self, key: Key, old: Object | None, new: Object | None) -> None:
        """A gateway's pod came, changed or went."""
        before, after = gateway_of(old), gateway_of(new)
        if before and before != after:
            self._drop((before, key[1]))
        if after in self._names:
            self.queue.add((after, key[1]))

    def views(self) -> tuple[GatewayView, ...]:
        """All gateways that exist, with their pods, and what these and those that go said."""
        return tuple(self._view(name) for name in self._names)

    async def settled(self) -> None:
        """Wait until every gateway pod was asked once."""
        while any(
            (gateway_of(pod), str(metadata_of(pod)["name"])) not in self._asked
            for pod in self._pods()
            if gateway_of(pod) in self._names
            and _stays(pod)
            and (pod.get("status") or {}).get("podIP")
        ):
            await asyncio.sleep(0.05)

    def fresh(self, stale_seconds: float) -> frozenset[tuple[str, str]]:
        """The gateway pods whose report is not older than this."""
        now = self._now()
        return frozenset(
            key for key, report in self._reports.items() if now - report.read_at <= stale_seconds
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _view(self, name: str) -> GatewayView:
        pods = tuple(
            sorted(
                str(metadata_of(pod)["name"])
                for pod in self._pods()
                if gateway_of(pod) == name and _stays(pod)
            )
        )
        reports = tuple(
            report for (gateway, _), report in sorted(self._reports.items()) if gateway == name
        )
        return GatewayView(name=name, pods=pods, reports=reports)

    async def _poll(self, key: tuple[str, str]) -> float | None:
        gateway, name = key
        pod = self._pod(name)
        if pod is None or gateway_of(pod) != gateway or _has_ended(pod):
            self._drop((gateway, name))
            return None
        address = str((pod.get("status") or {}).get("podIP") or "")
        if not address:
            # The pod's next event comes when it has one.
            return None
        report = await self._fetch((gateway, name), address)
        self._asked.add((gateway, name))
        if report is not None or not is_going(pod):
            self._polled(report is not None)
        if report is not None:
            before = self._reports.get((gateway, name))
            self._reports[gateway, name] = report
            if not _says_the_same(before, report):
                self._changed(gateway, before, report)
        return self._interval_seconds * (0.9 + 0.2 * self._source.random())

    async def _fetch(self, key: tuple[str, str], address: str) -> GatewayReport | None:
        if self._session is None:
            self._session = session_for_pods(timeout=self._timeout)
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self._port}/status"
        asked = self._now()
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise PodAnswerError(f"{url}: status {response.status}")
                document = await read_json(response, most_bytes=self._most_bytes)
            report = read_gateway_status(document, pod=key[1], read_at=asked)
        except PodAnswerError as error:
            self._note_away(key, str(error))
            return None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, ArithmeticError) as error:
            # Arithmetic: a number of it is infinite.
            self._note_away(key, f"{url}: {type(error).__name__} {error}".rstrip())
            return None
        self._away.discard(key)
        return report

    def _note_away(self, key: tuple[str, str], cause: str) -> None:
        pod = self._pod(key[1])
        # One that is going stops answering when its last request has ended.
        if key not in self._away and pod is not None and not is_going(pod):
            log.warning("gateway does not report", gateway=key[0], pod=key[1], cause=cause)
            self._away.add(key)

    def _pod(self, name: str) -> Object | None:
        return next((pod for pod in self._pods() if metadata_of(pod)["name"] == name), None)

    def _drop(self, key: tuple[str, str]) -> None:
        self.queue.forget(key)
        self._away.discard(key)
        self._asked.discard(key)
        before = self._reports.pop(key, None)
        if before is not None:
            self._changed(key[0], before, None)


def gateway_of(pod: Object | None) -> str:
    """The gateway that a pod belongs to, by its label."""
    return str((metadata_of(pod or {}).get("labels") or {}).get(GATEWAY_LABEL) or "")


def _stays(pod: Object) -> bool:
    return not is_going(pod) and not _has_ended(pod)


def _has_ended(pod: Object) -> bool:
    """Whether nothing runs there any more: an evicted pod stays as an object, for weeks."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def _says_the_same(before: GatewayReport | None, after: GatewayReport) -> bool:
    if before is None or (before.config_hash, before.ready) != (after.config_hash, after.ready):
        return False
    # Loads differ from second to second; only who serves is news.
    return _serving(before) == _serving(after)


def _serving(report: GatewayReport) -> dict[str, int]:
    return {key: pool.serving_replicas for key, pool in report.pools.items()}
