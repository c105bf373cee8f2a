"""Compares what we hold with what the API server has, in case an event was missed.

kopf's watch tells additions and changes anew after a gap, but not deletions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from pointsman_api.labels import (
    CONFIG_LABEL,
    FIELD_MANAGER,
    GATEWAY_LABEL,
    credentials_name,
)
from pointsman_kube.client import Kube
from pointsman_kube.errors import Fenced, KubeError
from pointsman_kube.identity import Key, key_of, uid_of, version_of
from pointsman_kube.kinds import CONFIG_MAP, ENDPOINT_SLICE, SECRET, Object, Ref
from pointsman_operator.apply import Applier
from pointsman_operator.mirrors import Mirrors, pools_served_from_here
from pointsman_operator.objects import metadata_of, name_of
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.store import Store, Table

log = structlog.get_logger(__name__)

_MANAGED_BY = "app.kubernetes.io/managed-by"


class Sweeper:
    """Drops what was deleted unseen, and deletes what nobody wants any more.

    Args:
        interval_seconds: between two sweeps.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        store: Store,
        mirrors: Callable[[], Mirrors],
        applier: Callable[[], Applier],
        settings: OperatorSettings,
        interval_seconds: float,
    ) -> None:
        self._kube = kube
        self._store = store
        self._mirrors = mirrors
        self._applier = applier
        self._settings = settings
        self._interval_seconds = interval_seconds
        self._asked = asyncio.Event()
        self._behind: frozenset[tuple[str, Key, str]] = frozenset()
        self._frozen = False
        self.synced = False
        """Whether the store holds all that there is; nothing is written before."""

    def ask(self) -> None:
        """There was a gap: sweep soon."""
        self._asked.set()

    def problems(self) -> Iterable[str]:
        """Whether the watches of ModelPools and RoutePolicies have stopped telling."""
        if self._frozen:
            yield (
                f"the watch has not told {len(self._behind)} objects as they are for more than "
                f"{self._interval_seconds:.0f} s"
            )

    async def wait_synced(self) -> None:
        """Wait until the watches have told everything that is there now."""
        while not self.synced:
            try:
                missing = [await self._compare(table) for table in self._store.tables()]
            except KubeError as error:
                log.warning("no list of what is wanted", cause=str(error))
            else:
                self.synced = not any(missing)
            if not self.synced:
                await asyncio.sleep(0.2)

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval_seconds):
                    await self._asked.wait()
                # Several gaps come together, and the watches need a moment to catch up.
                await asyncio.sleep(min(1.0, self._interval_seconds))
            except TimeoutError:
                pass
            self._asked.clear()
            try:
                await self.sweep()
            except Fenced:
                raise
            except KubeError as error:
                log.warning("sweep failed", cause=str(error))

    async def sweep(self) -> None:
        """Compare once, and delete what is left over."""
        behind: set[tuple[str, Key, str]] = set()
        for table in self._store.tables():
            behind |= await self._compare(table)
        # What was behind in the same way a whole interval ago will not come by itself.
        self._frozen = bool(behind & self._behind)
        if self._frozen:
            log.error("the watch is frozen", objects=len(behind & self._behind))
        self._behind = frozenset(behind)
        await self._delete_orphans()

    async def _compare(self, table: Table[Any]) -> set[tuple[str, Key, str]]:
        """Drop what is gone; returns what the store does not have as it is."""
        before = table.versions()
        items, _ = await self._kube.list(table.kind, metadata_only=True)
        listed = {key_of(item): (uid_of(item), version_of(item)) for item in items}
        for key, (uid, _) in before.items():
            if key not in listed or listed[key][0] != uid:
                if key not in listed:
                    log.info("deletion was missed", kind=table.kind.name, key="/".join(key))
                table.remove(key, uid=uid)
        now = table.versions()
        return {
            (table.kind.name, key, version)
            for key, (uid, version) in listed.items()
            # Held in this version, or in one that came while the list was on its way.
            if now.get(key, ("", ""))[0] != uid
            or (now[key][1] != version and now[key] == before.get(key))
        }

    async def _delete_orphans(self) -> None:
        """Delete what belongs to no pool and no gateway any more.

        What tells of the rest goes last: a sweep that ends half-way leaves what the next one needs
        to find it. One object that cannot be deleted keeps no other.
        """
        mirrors, namespace = self._mirrors(), self._settings.namespace
        pools = set(self._store.pools.keys())
        for item in list(mirrors.slices):
            if _is_ours(item) and not pools.intersection(pools_served_from_here(item)):
                await self._delete(
                    Ref(kind=ENDPOINT_SLICE, namespace=namespace, name=name_of(item))
                )
        orphans = [item for item in list(mirrors.config_maps) if self._is_of_no_gateway(item)]
        deleted: dict[str, bool] = {}
        for item in orphans:
            gateway = str(metadata_of(item)["labels"][GATEWAY_LABEL])
            if gateway not in deleted:
                # Secrets are never listed: only the gateway's ConfigMaps tell that there is one.
                secret = Ref(kind=SECRET, namespace=namespace, name=credentials_name(gateway))
                deleted[gateway] = await self._delete(secret)
            if deleted[gateway]:
                await self._delete(Ref(kind=CONFIG_MAP, namespace=namespace, name=name_of(item)))

    async def _delete(self, ref: Ref) -> bool:
        """Whether it is gone now."""
        try:
            await self._applier().delete([ref])
        except Fenced:
            raise
        except KubeError as error:
            log.warning("orphan not deleted", object=str(ref), cause=str(error))
            return False
        return True

    def _is_of_no_gateway(self, item: Object) -> bool:
        labels = metadata_of(item).get("labels") or {}
        known = labels.get(GATEWAY_LABEL) in self._settings.gateways
        return bool(_is_ours(item) and CONFIG_LABEL in labels and not known)


def _is_ours(item: Object) -> bool:
    return bool((metadata_of(item).get("labels") or {}).get(_MANAGED_BY) == FIELD_MANAGER)
