"""Gathers what is known about one pool, mostly from the mirrors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from pointsman_api.labels import AUTH_TOKEN_KEY, REPLICA_TOKEN_KEY, access_secret_name
from pointsman_api.modelpool import ModelPool
from pointsman_kube.client import Kube
from pointsman_kube.errors import KubeError
from pointsman_kube.kinds import POD, Object, Ref
from pointsman_operator.causes import last_line
from pointsman_operator.gateway_reports import GatewayReports
from pointsman_operator.mirrors import BY_POOL, Mirrors
from pointsman_operator.objects import is_going, metadata_of, name_of
from pointsman_operator.observed import PoolObserved
from pointsman_operator.ray_polls import RayPolls
from pointsman_operator.secret_reader import Key, SecretReader, decoded
from pointsman_operator.selected_pods import SelectedPods
from pointsman_operator.sources import named_secrets

_LOG_LINES = 20
_MISSING_SECONDS = 1.0
_REMEMBERED_LOGS = 512
_MOST_LOGS = 4
"""Crashed pods of one pool that are asked for their last words; the others say the same."""


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
        self._token_came = token_came
        self._tokens: dict[Key, str | None] = {}
        self._access_age_seconds = access_age_seconds
        self._now = now
        self._logs: OrderedDict[tuple[str, ...], str] = OrderedDict()

    async def observe(
        self, pool: ModelPool, *, refused: str, refused_revision: str = ""
    ) -> PoolObserved:
        """What is known about a pool now."""
        key = key_of(pool)
        slices = tuple(self._mirrors.slices.find(BY_POOL, key))
        secrets = {name: await self._keys_in(key[0], name) for name in named_secrets(pool)}
        selector = pool.spec.backend.pod_selector
        if selector is not None:
            return PoolObserved(
                now=self._now(),
                pods=await self._selected.pods(key, selector.selector),
                slices=slices,
                secrets=secrets,
                gateways=self._gateways.views(),
            )
        await self._selected.forget(key)
        if pool.spec.backend.ray_serve is None:
            return PoolObserved(
                now=self._now(), slices=slices, secrets=secrets, gateways=self._gateways.views()
            )
        access = await self._access(key)
        clusters = tuple(self._mirrors.ray_clusters.find(BY_POOL, key))
        pods = tuple(self._mirrors.pods.find(BY_POOL, key))
        lines = await self._last_lines(pods)
        return PoolObserved(
            now=self._now(),
            kuberay_served=self._mirrors.ray_services.served is not False,
            access_secret=access,
            revisions=tuple(self._mirrors.revisions.find(BY_POOL, key)),
            ray_service=self._mirrors.ray_services.get(*key),
            ray_clusters=clusters,
            pods=pods,
            serve=self._ray.readings(key),
            slices=slices,
            secrets=secrets,
            last_log_lines=lines,
            gateways=self._gateways.views(),
            refused=refused,
            refused_revision=refused_revision,
        )

    @property
    def missing_seconds(self) -> float:
        """After how long a Secret that is missing is looked for again."""
        return self._secrets.missing_ttl_seconds

    def forget(self, key: Key) -> None:
        """The pool is gone, and its tokens with it."""
        self._secrets.forget(key[0], access_secret_name(key[1]))
        self._tokens.pop(key, None)

    def ray_token(self, key: Key) -> str | None:
        """Ray's token of a pool's clusters, as far as it was read."""
        return decoded(self._secrets.held(key[0], access_secret_name(key[1]))).get(AUTH_TOKEN_KEY)

    async def _access(self, key: Key) -> Object | None:
        name = access_secret_name(key[1])
        held = self._secrets.held(key[0], name)
        # A missing one is soon asked for again: only its maker, who is us, knows that it came.
        age = self._access_age_seconds if held is not None else _MISSING_SECONDS
        secret = await self._secrets.read(key[0], name, most_age_seconds=age)
        token = decoded(secret).get(REPLICA_TOKEN_KEY)
        if self._tokens.get(key) != token:
            # Gateways send it with every request.
            self._tokens[key] = token
            self._token_came()
        return secret

    async def _keys_in(self, namespace: str, name: str) -> frozenset[str] | None:
        secret = await self._secrets.read(namespace, name)
        return None if secret is None else frozenset(secret.get("data") or {})

    async def _last_lines(self, pods: Iterable[Object]) -> Mapping[str, str]:
        lines: dict[str, str] = {}
        asked = 0
        for pod in pods:
            crashed = None if is_going(pod) else _crashed_container(pod)
            if crashed is None:
                continue
            container, restarts = crashed
            life = (str(metadata_of(pod).get("uid")), container, str(restarts))
            if life not in self._logs:
                if asked >= _MOST_LOGS:
                    continue
                asked += 1
                self._logs[life] = await self._last_line(pod, container, previous=restarts > 0)
                while len(self._logs) > _REMEMBERED_LOGS:
                    self._logs.popitem(last=False)
            if self._logs[life]:
                lines[name_of(pod)] = self._logs[life]
        return lines

    async def _last_line(self, pod: Object, container: str, *, previous: bool) -> str:
        ref = Ref(kind=POD, namespace=str(metadata_of(pod)["namespace"]), name=name_of(pod))
        try:
            text = await self._kube.log(
                ref, container=container, previous=previous, lines=_LOG_LINES
            )
        except KubeError:
            return ""
        return last_line(text)


def key_of(pool: ModelPool) -> Key:
    """A pool's namespace and name."""
    return pool.metadata.namespace, pool.metadata.name


def _crashed_container(pod: Object) -> tuple[str, int] | None:
    """A container that ended in failure and does not run, and how often it was restarted."""
    status = pod.get("status") or {}
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            state = container.get("state") or {}
            ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
            if ended and not state.get("running") and ended.get("exitCode", 0) != 0:
                return str(container.get("name", "")), int(container.get("restartCount") or 0)
    return None
