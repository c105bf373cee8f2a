"""Looks every second whether an autoscaled pool needs another number of replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from pointsman_kube.identity import Key
from pointsman_operator.gateway_reports import GatewayReports
from pointsman_operator.pool_memory import PoolMemory
from pointsman_operator.scaling import decide, load_of
from pointsman_operator.store import Store

log = structlog.get_logger(__name__)


class Autoscaler:
    """Keeps each pool's scaling state up to date.

    The state lives in memory: a new leader starts from what runs, and its delays begin anew,
    which may keep replicas for longer than needed but never takes one away too early.

    Args:
        memories: of the pools; those without a scaling state are passed over.
        changed: told the pool that wants another number of replicas.
        stale_seconds: a gateway's report that is older counts as none.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        store: Store,
        memories: Mapping[Key, PoolMemory],
        reports: GatewayReports,
        changed: Callable[[Key], None],
        stale_seconds: float,
        now: Callable[[], float],
        interval_seconds: float = 1.0,
    ) -> None:
        self._store = store
        self._memories = memories
        self._reports = reports
        self._changed = changed
        self._stale_seconds = stale_seconds
        self._now = now
        self._interval_seconds = interval_seconds

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            self.look()

    def look(self) -> None:
        """Decide once for every autoscaled pool."""
        now, views = self._now(), self._reports.views()
        for key, memory in list(self._memories.items()):
            pool = self._store.pools.last_good(key)
            if memory.scaling is None or pool is None or pool.spec.autoscaling is None:
                continue
            load = load_of(pool.key, views, now=now, stale_seconds=self._stale_seconds)
            before = memory.scaling.wanted
            memory.scaling = decide(
                pool, memory.scaling, load, now=now, rolling_out=memory.rolling_out
            )
            if memory.scaling.wanted == before:
                continue
            log.info(
                "scaling",
                pool=pool.key,
                replicas_before=before,
                replicas=memory.scaling.wanted,
                requests=load.requests,
            )
            self._changed(key)
