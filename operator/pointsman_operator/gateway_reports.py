"""Asks every gateway pod for its status, each second, and keeps the last good answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import structlog

from pointsman_api.labels import GATEWAY_LABEL
from pointsman_kube.kinds import Object
from pointsman_kube.mirror import Key, Mirror
from pointsman_operator.objects import is_going, metadata_of
from pointsman_operator.observed import GatewayReport, GatewayView, read_gateway_status
from pointsman_operator.work_queue import WorkQueue

log = structlog.get_logger(__name__)

_MOST_BYTES = 64 * 1024 * 1024
_AWAY_SECONDS = 10.0

ReportChanged = Callable[[str, GatewayReport | None, GatewayReport | None], None]
"""Told the gateway and its pod's report before and after; None: there is none."""


class GatewayReports:
    """What the gateways say.

    Args:
        pods: the gateways' pods.
        names: the gateways that exist.
        port: TCP port of ``/status`` in each pod.
        changed: told when a report says something else than the one before.
        interval_seconds: between two questions to one pod.
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
        """All gateways that exist, with the pods that are there and what they said."""
        return tuple(self._view(name) for name in self._names)

    async def settled(self) -> None:
        """Wait until every gateway pod was asked once."""
        while any(
            (gateway_of(pod), str(metadata_of(pod)["name"])) not in self._asked
            for pod in self._pods()
            if gateway_of(pod) in self._names
            and not is_going(pod)
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
                if gateway_of(pod) == name and not is_going(pod)
            )
        )
        reports = tuple(
            report for (gateway, _), report in sorted(self._reports.items()) if gateway == name
        )
        return GatewayView(name=name, pods=pods, reports=reports)

    async def _poll(self, key: tuple[str, str]) -> float | None:
        gateway, name = key
        pod = self._pod(name)
        if pod is None or gateway_of(pod) != gateway or is_going(pod):
            self._drop((gateway, name))
            return None
        address = str((pod.get("status") or {}).get("podIP") or "")
        if not address:
            # The pod's next event comes when it has one.
            return None
        report = await self._fetch((gateway, name), address)
        self._asked.add((gateway, name))
        self._polled(report is not None)
        if report is not None:
            before = self._reports.get((gateway, name))
            self._reports[gateway, name] = report
            if not _says_the_same(before, report):
                self._changed(gateway, before, report)
        return self._interval_seconds * (0.9 + 0.2 * self._source.random())

    async def _fetch(self, key: tuple[str, str], address: str) -> GatewayReport | None:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self._port}/status"
        asked = self._now()
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status != 200 or (response.content_length or 0) > _MOST_BYTES:
                    raise ValueError(f"status {response.status}")
                document: Any = await response.json(content_type=None)
            report = read_gateway_status(document, pod=key[1], read_at=asked)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if key not in self._away:
                said = f"{type(error).__name__} {error}".rstrip()
                log.warning("gateway does not report", gateway=key[0], pod=key[1], cause=said)
                self._away.add(key)
            return None
        self._away.discard(key)
        return report

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


def _says_the_same(before: GatewayReport | None, after: GatewayReport) -> bool:
    if before is None or (before.config_hash, before.ready) != (after.config_hash, after.ready):
        return False
    # Loads differ from second to second; only who serves is news.
    return _serving(before) == _serving(after)


def _serving(report: GatewayReport) -> dict[str, int]:
    return {key: pool.serving_replicas for key, pool in report.pools.items()}
