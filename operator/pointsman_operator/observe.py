"""Gathers what is known about one pool, mostly from the mirrors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from pointsman_api.labels import credentials_name, token_key
from pointsman_api.modelpool import ModelPool
from pointsman_kube.client import Kube
from pointsman_kube.errors import KindNotServed
from pointsman_kube.identity import Key
from pointsman_kube.kinds import RAY_SERVICE, Object
from pointsman_operator.access_reader import AccessReader
from pointsman_operator.claims import Claim, claim_of, is_former, is_labelled
from pointsman_operator.clusters import CLUSTER_LABEL
from pointsman_operator.gateway_reports import GatewayReports
from pointsman_operator.mirrors import BY_POOL, Mirrors
from pointsman_operator.objects import metadata_of, name_of
from pointsman_operator.observed import PoolObserved
from pointsman_operator.pod_logs import LastLines
from pointsman_operator.ray_polls import RayPolls
from pointsman_operator.secret_reader import SecretReader, decoded
from pointsman_operator.selected_pods import SelectedPods
from pointsman_operator.sources import named_secrets


class Observer:
    """Makes the observed state of a pool.

    Args:
        token_came: called when a pool's tokens were read that were not known before.
        access_age_seconds: a pool's own tokens are read again after this: they never change,
            unless somebody deletes them.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        mirrors: Mirrors,
        selected: SelectedPods,
        secrets: SecretReader,
        ray: RayPolls,
        gateways: GatewayReports,
        token_came: Callable[[], None],
        access_age_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._mirrors = mirrors
        self._selected = selected
        self._secrets = secrets
        self._ray = ray
        self._gateways = gateways
        self._access = AccessReader(
            secrets, age_seconds=access_age_seconds, token_came=token_came, now=now
        )
        self._lines = LastLines(kube, now=now)
        self._named: dict[Key, frozenset[str]] = {}
        """The Secrets that each pool named last."""
        self._now = now

    async def observe(
        self,
        pool: ModelPool,
        *,
        refused: str,
        refused_revision: str = "",
        routed_by: frozenset[str] | None = None,
    ) -> PoolObserved:
        """What is known about a pool now."""
        key = key_of(pool)
        named = named_secrets(pool)
        self._note_named(key, named)
        secrets = {name: await self._keys_in(key[0], name) for name in named}
        common = PoolObserved(
            now=self._now(),
            slices=tuple(self._mirrors.slices.find(BY_POOL, key)),
            secrets=secrets,
            gateways=self._gateways.views(),
            routed_by=routed_by,
        )
        selector = pool.spec.backend.pod_selector
        if selector is not None:
            return replace(common, pods=await self._selected.pods(key, selector.selector))
        await self._selected.forget(key)
        if pool.spec.backend.ray_serve is None:
            return common
        found = self._mirrors.ray_services.get(*key)
        service = found if found is not None and claim_of(found, pool) is Claim.OURS else None
        clusters = own_clusters(pool, service, self._mirrors.ray_clusters.find(BY_POOL, key))
        pods = own_pods(pool, clusters, self._mirrors.pods.find(BY_POOL, key))
        access = await self._access.read(pool, pods)
        lines = await self._lines.of(pods)
        in_the_way = (found if service is None else None, access.foreign)
        return replace(
            common,
            kuberay_served=self._mirrors.ray_services.served is not False,
            access_secret=access.secret,
            lost_access=access.lost,
            in_the_way=tuple(item for item in in_the_way if item is not None),
            revisions=tuple(self._mirrors.revisions.find(BY_POOL, key)),
            ray_service=service,
            ray_clusters=clusters,
            pods=pods,
            serve={
                name: reading
                for name, reading in self._ray.readings(key).items()
                if name in map(name_of, clusters)
            },
            last_log_lines=lines,
            refused=refused,
            refused_revision=refused_revision,
        )

    async def find_hidden(self, pool: ModelPool, observed: PoolObserved) -> PoolObserved | None:
        """The same with the RayService of the pool's name that no mirror shows; None: no such.

        Mirrors show what is labelled. One that is the pool's own lost its labels.
        """
        namespace, name = key_of(pool)
        try:
            # A list of one: the operator need not be allowed another verb for it.
            items, _ = await self._kube.list(
                RAY_SERVICE, namespace, field_selector=f"metadata.name={name}"
            )
        except KindNotServed:
            return None
        if not items:
            return None
        (found,) = items
        if claim_of(found, pool) is Claim.OURS:
            return replace(observed, ray_service=found)
        return replace(observed, in_the_way=(found, *observed.in_the_way))

    @property
    def missing_seconds(self) -> float:
        """After how long a Secret that is missing is looked for again."""
        return self._secrets.missing_ttl_seconds

    def forget(self, key: Key) -> None:
        """Somebody has made the pool's Secret anew: read it again."""
        self._access.read_again(key)

    def forget_pool(self, key: Key) -> None:
        """The pool is gone, its tokens with it, and what it named."""
        self._access.forget(key)
        self._note_named(key, ())

    def ray_token(self, key: Key) -> str | None:
        """Ray's token of a pool's clusters, as far as it was read."""
        return self._access.ray_token(key)

    def known_replica_token(
        self, key: Key, *, namespace: str, gateways: Iterable[str]
    ) -> str | None:
        """The token of a pool's replicas that its gateways have, as far as that was read.

        Args:
            namespace: the gateways'.
        """
        name = token_key(*key)
        for gateway in gateways:
            held = self._secrets.held(namespace, credentials_name(gateway))
            if token := decoded(held).get(name):
                return token
        return None

    def _note_named(self, key: Key, names: Iterable[str]) -> None:
        """Forget the Secrets that a pool names no more; who else names one reads it anew."""
        before, now = self._named.pop(key, frozenset()), frozenset(names)
        if now:
            self._named[key] = now
        for name in before - now:
            self._secrets.forget(key[0], name)

    async def _keys_in(self, namespace: str, name: str) -> frozenset[str] | None:
        secret = await self._secrets.read(namespace, name)
        return None if secret is None else frozenset(secret.get("data") or {})


def key_of(pool: ModelPool) -> Key:
    """A pool's namespace and name."""
    return pool.metadata.namespace, pool.metadata.name


def own_clusters(
    pool: ModelPool, service: Object | None, clusters: Iterable[Object]
) -> tuple[Object, ...]:
    """Those of the RayClusters for a RayService of the pool's name that are the pool's.

    A stranger's RayService of this name has some too, and so had that of a deleted namesake.
    """
    uid = metadata_of(service or {}).get("uid")
    return tuple(
        item
        for item in clusters
        if is_labelled(item, pool)
        and ((uid and _is_owned_by(item, uid)) or not is_former(item, pool))
    )


def own_pods(
    pool: ModelPool, clusters: Iterable[Object], pods: Iterable[Object]
) -> tuple[Object, ...]:
    """The pods that are not left from a deleted pool of the same name."""
    names = {name_of(item) for item in clusters}
    return tuple(
        pod
        for pod in pods
        if (metadata_of(pod).get("labels") or {}).get(CLUSTER_LABEL) in names
        or not is_former(pod, pool)
    )


def _is_owned_by(obj: Mapping[str, object], uid: object) -> bool:
    owners = metadata_of(obj).get("ownerReferences") or ()
    return any(owner.get("uid") == uid for owner in owners)
