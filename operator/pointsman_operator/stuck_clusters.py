"""Takes KubeRay's finalizer off RayClusters that it would hold for good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from pointsman_kube.client import Kube
from pointsman_kube.errors import Conflict, Fenced, KindNotServed, KubeError, NotFound
from pointsman_kube.kinds import RAY_CLUSTER, Object, Ref
from pointsman_operator.clusters import REDIS_FINALIZER, stuck_clusters
from pointsman_operator.objects import metadata_of, name_of

log = structlog.get_logger(__name__)


class StuckClusters:
    """Looks now and then whether a RayCluster of a pool, also of a deleted one, is stuck.

    Args:
        clusters: all that are known.
        pods: those of pools.
        patience_seconds: for so long a cluster has been stuck before its finalizer goes.
        now: seconds, of any epoch.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        clusters: Callable[[], Iterable[Object]],
        pods: Callable[[], Iterable[Object]],
        patience_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._clusters = clusters
        self._pods = pods
        self._patience_seconds = patience_seconds
        self._now = now
        self._since: dict[str, float] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(min(10.0, self._patience_seconds / 4))
            await self.look()

    async def look(self) -> None:
        """Look once, and free what has been stuck for long enough."""
        now = self._now()
        stuck = {_uid(item): item for item in stuck_clusters(self._clusters(), self._pods())}
        # Counted anew after every pod: KubeRay begins to clear up when the last one is gone.
        self._since = {uid: self._since.get(uid, now) for uid in stuck}
        for uid, since in self._since.items():
            if now - since >= self._patience_seconds:
                await self._free(stuck[uid])

    async def _free(self, cluster: Any) -> None:
        metadata = metadata_of(cluster)
        ref = Ref(kind=RAY_CLUSTER, namespace=str(metadata["namespace"]), name=name_of(cluster))
        others = [item for item in metadata["finalizers"] if item != REDIS_FINALIZER]
        # The list is replaced whole: only in the state that it was read in.
        version = str(metadata["resourceVersion"])
        change = {"metadata": {"resourceVersion": version, "finalizers": others}}
        try:
            await self._kube.merge(ref, change)
        except Fenced:
            raise
        except (Conflict, KindNotServed, NotFound):
            return
        except KubeError as error:
            log.warning("a stuck RayCluster stays", object=str(ref), cause=str(error))
            return
        log.warning(
            "took KubeRay's finalizer off a deleted RayCluster: nobody cleared its keys in Redis, "
            "some may be left there",
            object=str(ref),
            finalizer=REDIS_FINALIZER,
            stuck_seconds=round(self._patience_seconds),
        )


def _uid(cluster: Any) -> str:
    return str(metadata_of(cluster).get("uid") or name_of(cluster))
