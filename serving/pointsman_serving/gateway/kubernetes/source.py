"""Following the API server: what to route, to which replicas, and what to show to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from pointsman_api.endpoint_slices import MANAGED_BY_LABEL, decode_slices
from pointsman_api.labels import (
    CONFIG_LABEL,
    FIELD_MANAGER,
    GATEWAY_LABEL,
    POOL_LABEL,
    POOL_NAMESPACE_LABEL,
    ROUTES_CONFIG,
    credentials_name,
)
from pointsman_api.meta import object_key
from pointsman_api.route_table import BackendType, PoolEntry, RouteTable
from pointsman_kube.client import Kube
from pointsman_kube.identity import Key
from pointsman_kube.kinds import CONFIG_MAP, ENDPOINT_SLICE, SECRET
from pointsman_kube.mirror import Mirror
from pointsman_serving.gateway.credentials import CredentialError
from pointsman_serving.gateway.discovery import Publish
from pointsman_serving.gateway.kubernetes.addresses import ready_addresses
from pointsman_serving.gateway.kubernetes.kept import KeptReplicas
from pointsman_serving.gateway.kubernetes.routes import RouteTables
from pointsman_serving.gateway.kubernetes.secrets import GatewaySecret
from pointsman_serving.gateway.kubernetes.watch_metrics import (
    ControlReading,
    WatchMetrics,
    WatchReading,
)
from pointsman_serving.gateway.server import Gateway

log = structlog.get_logger(__name__)

Object = dict[str, Any]

_POOLS = "pools"
# Few gateways ask, and each is blind while it waits.
_RETRY_MOST_SECONDS = 5.0
# A table in several parts is replaced part by part; one that stays half is worth a word.
_PATIENCE_SECONDS = 5.0


class KubernetesSource:
    """Everything that a gateway needs, from its own namespace. Implements ``ReplicaSource``.

    While the API server is away all stays as it was, and so do the replicas of a pool that has
    lost all its slices, as long as they answer: see :mod:`.kept`. Nothing is in force, and the
    gateway is not ready, until ConfigMaps, slices and Secret have been read once.

    Args:
        gateway: whose route table is set.
        kube: only read from.
        secret: from which the gateway takes keys and tokens.
        namespace: the gateway's own, where the operator writes for it.
    """

    def __init__(
        self,
        gateway: Gateway,
        kube: Kube,
        secret: GatewaySecret,
        *,
        namespace: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._kube = kube
        self._secret = secret
        self._publish: Publish = _nowhere
        self._begun = False
        self._scheduled = False
        self._routes_changed = self._secret_changed = False
        self._changed_pools: set[str] = set()
        self._withheld: set[str] = set()
        self._kept = KeptReplicas(self._look_at, clock=clock)
        self._routes = RouteTables(gateway.set_table, clock=clock)
        name = gateway.settings.name
        self._config_maps = Mirror(
            kube,
            CONFIG_MAP,
            namespace=namespace,
            label_selector=f"{GATEWAY_LABEL}={name},{CONFIG_LABEL}={ROUTES_CONFIG}",
            on_change=self._on_routes,
            retry_most_seconds=_RETRY_MOST_SECONDS,
        )
        self._slices = Mirror(
            kube,
            ENDPOINT_SLICE,
            namespace=namespace,
            label_selector=f"{MANAGED_BY_LABEL}={FIELD_MANAGER}",
            on_change=self._on_slice,
            indexes={_POOLS: _pools_of},
            retry_most_seconds=_RETRY_MOST_SECONDS,
        )
        self._secrets = Mirror(
            kube,
            SECRET,
            namespace=namespace,
            # By its name, so that the right to read it is enough.
            field_selector=f"metadata.name={credentials_name(name)}",
            on_change=self._on_secret,
            retry_most_seconds=_RETRY_MOST_SECONDS,
        )
        self._mirrors = (self._config_maps, self._slices, self._secrets)
        gateway.metrics.registry.register(WatchMetrics(self.reading))

    async def run(self, table: Callable[[], RouteTable], publish: Publish) -> None:
        """See :class:`~pointsman_serving.gateway.discovery.ReplicaSource`."""
        self._publish = publish
        async with asyncio.TaskGroup() as group:
            for mirror in self._mirrors:
                group.create_task(mirror.run())
            group.create_task(self._kept.run())
            for mirror in self._mirrors:
                await mirror.answered()
            self._begun = True
            self._routes_changed = self._secret_changed = True
            self._apply()

    def reading(self) -> ControlReading:
        """What is measured at a scrape."""
        age_seconds = max(self._routes.stale_seconds, self._config_maps.stale_seconds)
        calls = self._kube.calls
        return ControlReading(
            table_age_seconds=age_seconds if self._routes.taken else None,
            tables_refused=self._routes.refused,
            replicas_kept=len(self._kept),
            watches={
                mirror.kind.resource: WatchReading(
                    silence_seconds=mirror.age_seconds,
                    refused=bool(mirror.refused),
                    objects=len(mirror),
                    lists=calls["list", mirror.kind.resource],
                    watches=calls["watch", mirror.kind.resource],
                )
                for mirror in self._mirrors
            },
        )

    # What the mirrors tell. What comes together is applied together, a whole list at once.

    def _on_routes(self, _key: Key, _old: Object | None, _new: Object | None) -> None:
        self._routes_changed = True
        self._schedule()

    def _on_slice(self, _key: Key, old: Object | None, new: Object | None) -> None:
        if old is not None and new is None:
            for name, endpoints in decode_slices([old]).items():
                self._kept.slice_deleted(name, endpoints)
        for item in (old, new):
            if item is not None:
                self._changed_pools.update(_pools_of(item))
        self._schedule()

    def _on_secret(self, key: Key, _old: Object | None, new: Object | None) -> None:
        if new is None:
            log.error("the gateway's Secret is gone; its last content stays", secret="/".join(key))
            return
        self._secret_changed = True
        self._schedule()

    def _look_at(self, pool: str) -> None:
        self._changed_pools.add(pool)
        self._schedule()

    def _schedule(self) -> None:
        if self._begun and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._apply)

    # Putting it in force.

    def _apply(self) -> None:
        self._scheduled = False
        try:
            self._take_secret()
            self._take_routes()
            self._take_replicas()
        except Exception:
            # What was in force stays, and the next change tries again.
            log.exception("what the API server told cannot be put in force")

    def _take_secret(self) -> None:
        if not self._secret_changed:
            return
        self._secret_changed = False
        for item in self._secrets:
            try:
                self._secret.take(item.get("data") or {})
            except ValueError as error:
                log.error(
                    "the gateway's Secret cannot be read; its last content stays", cause=error
                )
                return
        self._gateway.plane.refresh_credentials()
        # Replicas that were withheld for the lack of a token, or are kept for theirs.
        self._changed_pools.update(self._withheld, self._kept.pools)

    def _take_routes(self) -> None:
        if not self._routes_changed:
            return
        self._routes_changed = False
        if self._routes.look(self._config_maps):
            self._changed_pools.update(self._gateway.plane.table.pools)
        elif self._routes.problem:
            loop = asyncio.get_running_loop()
            loop.call_later(_PATIENCE_SECONDS, self._tell_patiently)

    def _tell_patiently(self) -> None:
        self._routes.tell(patience_seconds=_PATIENCE_SECONDS / 2)

    def _take_replicas(self) -> None:
        changed, self._changed_pools = self._changed_pools, set()
        pools = self._gateway.plane.table.pools
        self._withheld &= pools.keys()
        self._kept.retain(pools)
        for name in changed & pools.keys():
            try:
                self._publish_pool(pools[name])
            except Exception:
                # One pool's slices must not keep the others from theirs.
                log.exception("the replicas of a pool stay as they were", pool=name)
        # That there is none is told as well.
        self._gateway.plane.heard = True

    def _publish_pool(self, pool: PoolEntry) -> None:
        if pool.backend is BackendType.EXTERNAL:
            return
        found = decode_slices(self._slices.find(_POOLS, pool.name)).get(pool.name)
        token = self._token(pool)
        told = found is not None
        if found is None:
            found = self._kept.untold(pool.name, token)
        else:
            self._kept.told(pool.name, found, token)
        addresses = ready_addresses(pool, found)
        if addresses and pool.backend is BackendType.RAY_SERVE and not self._has_token(pool):
            if pool.name not in self._withheld:
                self._withheld.add(pool.name)
                log.warning(
                    "replicas are not used yet: their token is not in the gateway's Secret",
                    pool=pool.name,
                )
            addresses = ()
        else:
            self._withheld.discard(pool.name)
        if found is not None and not told:
            self._kept.use(pool.name, addresses)
        self._publish(pool.name, addresses)

    def _token(self, pool: PoolEntry) -> str | None:
        try:
            return self._secret.token(pool)
        except CredentialError:
            # Said when the token is put in force.
            return None

    def _has_token(self, pool: PoolEntry) -> bool:
        return self._gateway.plane.has_token(pool.name)


def _pools_of(item: Object) -> list[str]:
    labels = item["metadata"].get("labels") or {}
    pool, namespace = labels.get(POOL_LABEL), labels.get(POOL_NAMESPACE_LABEL)
    return [object_key(namespace, pool)] if pool and namespace else []


def _nowhere(_pool: str, _addresses: object) -> None:
    """Nobody listens yet."""
