"""Asks the Ray heads of each pool which replicas serve."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from pointsman_api.labels import access_secret_name
from pointsman_kube.identity import Key
from pointsman_kube.kinds import Object
from pointsman_kube.mirror import Mirror
from pointsman_operator.clusters import CLUSTER_LABEL, NODE_TYPE_LABEL
from pointsman_operator.mirrors import BY_POOL
from pointsman_operator.objects import is_going, metadata_of, name_of
from pointsman_operator.observed import ServeReading, read_serve
from pointsman_operator.ray_api import RayApi, RayError
from pointsman_operator.ray_groups import fetch_groups, groups_of, spreads, with_groups
from pointsman_operator.work_queue import WorkQueue

log = structlog.get_logger(__name__)


MOVING_SECONDS = 1.0
"""Between two questions while something moves."""
STILL_SECONDS = 5.0
"""Between two questions while nothing does."""


DOUBT_SECONDS = 30.0
"""Between two looks at the Secret whose token the heads refuse."""


class _RefusedTokenError(Exception):
    """The head does not take the token."""


class RayPolls:
    """The last good readings of each pool's RayClusters.

    Args:
        clusters: the RayClusters, indexed by pool.
        pods: the pods of pools, indexed by pool.
        token: gives the token of a pool's clusters, or None while there is none.
        wrong_token: told the pool whose token was refused.
        changed: told the pool of which a reading says something new.
        url_template: with ``{host}``, ``{namespace}`` and ``{cluster}``.
        workers: heads that are asked at once.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        api: RayApi,
        *,
        clusters: Callable[[], Mirror],
        pods: Callable[[], Mirror],
        token: Callable[[Key], str | None],
        wrong_token: Callable[[Key], None],
        changed: Callable[[Key], None],
        url_template: str,
        polled: Callable[[bool], None] = lambda ok: None,
        workers: int = 16,
        now: Callable[[], float] = time.time,
        source: random.Random | None = None,
    ) -> None:
        self._api = api
        self._clusters = clusters
        self._pods = pods
        self._token = token
        self._wrong_token = wrong_token
        self._changed = changed
        self._url_template = url_template
        self._polled = polled
        self._now = now
        self._source = source or random.Random()
        self._readings: dict[Key, dict[str, ServeReading]] = {}
        self._moving: set[Key] = set()
        self._away: set[tuple[Key, str]] = set()
        self._doubted: dict[Key, tuple[str, float]] = {}
        """The token of a pool that every head refused last, and when."""
        self._without_groups: set[tuple[Key, str]] = set()
        self._without_token: set[Key] = set()
        self.queue = WorkQueue("ray", self._poll, workers=workers, timeout_seconds=30.0)

    def readings(self, key: Key) -> dict[str, ServeReading]:
        """The last good reading of each living RayCluster of a pool, by its name."""
        return dict(self._readings.get(key, {}))

    async def read_first(self, pool: Key) -> None:
        """Ask once, now, unless there are readings of this pool's clusters already.

        What was known before a restart is lost, and without it every replica would look gone.
        """
        if pool not in self._readings:
            self._readings[pool] = {}
            clusters = self._living(pool)
            self._readings[pool].update(await self._read_all(pool, clusters))

    def follow(self, key: Key, *, moving: bool) -> None:
        """Ask the heads of this pool, often if something moves. Costs nothing if they are."""
        if moving and key not in self._moving:
            self._moving.add(key)
            self.queue.add(key)
        elif not moving:
            self._moving.discard(key)
            self.queue.add_later(key, self._jittered(STILL_SECONDS))

    def forget(self, key: Key) -> None:
        """The pool is gone, or has no RayService any more."""
        self._readings.pop(key, None)
        self._moving.discard(key)
        self._doubted.pop(key, None)
        self._without_token.discard(key)
        self._away = {item for item in self._away if item[0] != key}
        self._without_groups = {item for item in self._without_groups if item[0] != key}
        self.queue.forget(key)

    async def _poll(self, pool: Key) -> float | None:
        clusters = self._living(pool)
        if not clusters:
            self.forget(pool)
            return None
        held = self._readings.setdefault(pool, {})
        news = False
        for name in [name for name in held if name not in clusters]:
            del held[name]
            news = True
        for name, reading in (await self._read_all(pool, clusters)).items():
            news = news or not _says_the_same(held.get(name), reading)
            held[name] = reading
        if news:
            self._changed(pool)
        return self._jittered(MOVING_SECONDS if pool in self._moving else STILL_SECONDS)

    async def _read_all(self, pool: Key, clusters: Mapping[str, Object]) -> dict[str, ServeReading]:
        """What the heads say that answer; all are asked with the token that is known now."""
        token = self._token(pool)
        if token is None:
            self._tell_no_token(pool, clusters)
            return {}
        self._without_token.discard(pool)
        found: dict[str, ServeReading] = {}
        refused = False
        for name, cluster in sorted(clusters.items()):
            try:
                reading = await self._read(pool, name, cluster, token)
            except _RefusedTokenError:
                refused = True
            else:
                if reading is not None:
                    found[name] = reading
        if refused and not found:
            # Where another head takes it, the token is right and the cluster is one of before.
            self._doubt_token(pool, token)
        return found

    def _tell_no_token(self, pool: Key, clusters: Mapping[str, Object]) -> None:
        living = sorted(name for name, item in clusters.items() if not is_going(item))
        if not living or pool in self._without_token:
            return
        self._without_token.add(pool)
        log.warning(
            "Ray's head is not asked: its token is not known; its last list stays",
            pool="/".join(pool),
            clusters=living,
            next_step=f"see whether the Secret {access_secret_name(pool[1])} is the pool's own",
        )

    def _doubt_token(self, pool: Key, token: str) -> None:
        doubted, at = self._doubted.get(pool, ("", 0.0))
        if token != doubted or not 0.0 <= self._now() - at < DOUBT_SECONDS:
            self._doubted[pool] = (token, self._now())
            self._wrong_token(pool)

    async def _read(self, pool: Key, name: str, cluster: Object, token: str) -> ServeReading | None:
        url = self._url(pool, name, cluster)
        if not url or is_going(cluster):
            return None
        asked = self._now()
        try:
            document = await self._api.fetch_applications(url, token)
            reading = read_serve(document, cluster=name, application=pool[1], read_at=asked)
        except (RayError, ValueError, ArithmeticError) as error:
            self._polled(False)
            if (pool, name) not in self._away:
                self._away.add((pool, name))
                log.info(
                    "Ray's head does not answer; its last list stays",
                    pool="/".join(pool),
                    cluster=name,
                    cause=str(error),
                )
            if isinstance(error, RayError) and error.unauthorized:
                raise _RefusedTokenError from error
            return None
        self._polled(True)
        self._away.discard((pool, name))
        if spreads(document, pool[1]):
            return await self._with_groups(pool, reading, url, token)
        return reading

    async def _with_groups(
        self, pool: Key, reading: ServeReading, url: str, token: str
    ) -> ServeReading:
        """The reading with the pods of each replica; those of the last one if Ray does not say."""
        try:
            groups = await fetch_groups(url, token, application=pool[1])
        except (OSError, ValueError) as error:
            if (pool, reading.cluster) not in self._without_groups:
                self._without_groups.add((pool, reading.cluster))
                log.info(
                    "Ray does not say which pods its replicas spread over; its last word stays",
                    pool="/".join(pool),
                    cluster=reading.cluster,
                    cause=str(error),
                )
            last = self._readings.get(pool, {}).get(reading.cluster)
            return with_groups(reading, groups_of(last))
        self._without_groups.discard((pool, reading.cluster))
        return with_groups(reading, groups)

    def _living(self, pool: Key) -> dict[str, Object]:
        return {name_of(item): item for item in self._clusters().find(BY_POOL, pool)}

    def _url(self, pool: Key, name: str, cluster: Object) -> str:
        """Where the head answers; empty while it has no address."""
        host = str((((cluster.get("status") or {}).get("head")) or {}).get("podIP") or "")
        if not host:
            host = self._head_address(pool, name)
        if not host and "{host}" in self._url_template:
            return ""
        host = f"[{host}]" if ":" in host else host
        return self._url_template.format(host=host, namespace=pool[0], cluster=name)

    def _head_address(self, pool: Key, cluster: str) -> str:
        for pod in self._pods().find(BY_POOL, pool):
            labels = metadata_of(pod).get("labels") or {}
            if labels.get(CLUSTER_LABEL) == cluster and labels.get(NODE_TYPE_LABEL) == "head":
                return str((pod.get("status") or {}).get("podIP") or "")
        return ""

    def _jittered(self, seconds: float) -> float:
        return seconds * (0.9 + 0.2 * self._source.random())


def _says_the_same(before: ServeReading | None, after: ServeReading) -> bool:
    return before is not None and replace(before, read_at=0.0) == replace(after, read_at=0.0)
