"""One round for one pool: observe, plan, write what differs, tell the truth."""

from __future__ import annotations

import random
import secrets as random_values
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from pointsman_api.compile import RouteProblem
from pointsman_api.conditions import ModelPoolCondition, Reason
from pointsman_api.endpoint_slices import ReplicaEndpoint, decode_slices
from pointsman_api.labels import REVISION_ANNOTATION
from pointsman_api.modelpool import ModelPool
from pointsman_kube.client import Kube
from pointsman_kube.errors import Forbidden, Invalid, KindNotServed, NotFound
from pointsman_kube.kinds import Object
from pointsman_operator.apply import Applier
from pointsman_operator.clusters import cluster_of
from pointsman_operator.conditions import Said, condition_documents
from pointsman_operator.endpoints import (
    EndpointsMemory,
    SlicePlan,
    join_endpoints,
    plan_slices,
)
from pointsman_operator.events import EventWriter
from pointsman_operator.mirrors import BY_POOL, Mirrors
from pointsman_operator.objects import Owner, annotation_of, canonical, is_going, name_of
from pointsman_operator.observe import Observer
from pointsman_operator.observed import PoolObserved
from pointsman_operator.plan import AccessTokens, PoolPlan, plan_gone, plan_pool
from pointsman_operator.ray_polls import RayPolls
from pointsman_operator.ray_service import replicas_of
from pointsman_operator.refusal import Refusal, refused
from pointsman_operator.rollout import MOVING
from pointsman_operator.scaling import ScalingState, initial_state, wanted_replicas
from pointsman_operator.selected_pods import SelectedPods
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.status import (
    is_fleeting,
    pool_events,
    pool_rollout,
    pool_status,
    rollout_moves,
)
from pointsman_operator.store import Key, Store
from pointsman_serving.engines.serve_listing import ServeTarget

log = structlog.get_logger(__name__)

_ROUNDS = 3
"""Of observe, plan and write in one reconcile: what was written is looked at again at once."""
_MOVING_SECONDS = 15.0
"""Deadlines are noticed by looking."""
_TOKEN_SECONDS = 5.0
"""How long a pool's first replicas wait at most until gateways have the token for them."""
_FLEETING_SECONDS = 1.5
"""How long a status that says only how far a pool is waits for the next: gateways answer in 1 s."""
_CRD_IS_GOING = "custom resource definition is terminating"


@dataclass(slots=True)
class PoolMemory:
    """What is remembered of a pool between rounds; a restart begins with none of it."""

    endpoints: EndpointsMemory = field(default_factory=EndpointsMemory)
    scaling: ScalingState | None = None
    rolling_out: bool = False
    """A roll-out moves: scaling waits."""
    moving: bool = False
    """The wanted revision is on its way, be it too slow."""
    refusal: Refusal | None = None
    waits_since: float | None = None
    """Since when the first replicas have waited for gateways to have their token."""
    last_scale_at: float | None = None
    untold_since: float | None = None
    """Since when the status has been another one than the one that was written."""


class PoolReconciler:
    """Reconciles pools by key.

    Args:
        route_problems: what compiling the route tables found wrong with a pool.
        has_token: whether the gateways have what they need to send requests to a pool.
        owner: of what is written into the operator's namespace.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        store: Store,
        mirrors: Mirrors,
        observer: Observer,
        applier: Applier,
        selected: SelectedPods,
        ray: RayPolls,
        events: EventWriter,
        settings: OperatorSettings,
        route_problems: Callable[[ModelPool], Iterable[RouteProblem]],
        has_token: Callable[[ModelPool], bool],
        resync_seconds: float,
        now: Callable[[], float],
        source: random.Random | None = None,
        owner: Owner | None = None,
    ) -> None:
        self.memories: dict[Key, PoolMemory] = {}
        self._kube = kube
        self._store = store
        self._mirrors = mirrors
        self._observer = observer
        self._applier = applier
        self._selected = selected
        self._ray = ray
        self._events = events
        self._settings = settings
        self._route_problems = route_problems
        self._has_token = has_token
        self._owner = owner
        self._resync_seconds = resync_seconds
        self._now = now
        self._source = source or random.Random()

    async def reconcile(self, key: Key) -> float | None:
        """One round; returns after how many seconds to look again, if nothing happens before."""
        raw = self._store.pools.raw(key)
        if raw is None or is_going(raw):
            await self._gone(key, forget=raw is None)
            return None
        pool = self._store.pools.get(key)
        if pool is None:
            await self._write_status(
                raw, _unreadable(raw, self._store.pools.problem(key), self._now())
            )
            return self._later(self._resync_seconds)
        memory = await self._recall(key, pool)
        observed, plan, endpoints = await self._settle(pool, memory)
        rollout = pool_rollout(pool, observed, plan, endpoints)
        status = pool_status(
            pool,
            observed,
            plan,
            endpoints,
            self._settings,
            before=raw.get("status"),
            route_problems=self._route_problems(pool),
            last_scale_at=memory.last_scale_at,
        )
        memory.moving = rollout.phase in MOVING
        memory.rolling_out = rollout_moves(rollout, status)
        later = self._follow(key, pool, memory, observed, plan, endpoints)
        if held := held_seconds(memory, raw.get("status"), status, observed.now):
            return min(held, later)
        await self._write_status(raw, status)
        return later

    async def _recall(self, key: Key, pool: ModelPool) -> PoolMemory:
        """What is remembered of a pool; at first what its EndpointSlices and Ray say."""
        memory = self.memories.get(key)
        if memory is None:
            observed = await self._observer.observe(pool, refused="")
            await self._ray.read_first(key)
            memory = PoolMemory(endpoints=recalled(observed))
            self.memories[key] = memory
        return memory

    async def _settle(
        self, pool: ModelPool, memory: PoolMemory
    ) -> tuple[PoolObserved, PoolPlan, tuple[ReplicaEndpoint, ...]]:
        """Write until nothing is left to write."""
        for left in reversed(range(_ROUNDS)):
            observed = await self._observe(pool, memory)
            endpoints, memory.endpoints = join_endpoints(pool, observed, memory.endpoints)
            # Before all else: a dead replica must leave the gateways' lists at once.
            slices = plan_slices(
                pool,
                endpoints,
                observed.slices,
                namespace=self._settings.namespace,
                owner=self._owner,
            )
            if not self._wait_for_token(pool, memory, observed, slices):
                await self._applier.apply(slices.apply)
                await self._applier.delete(slices.delete)
            plan = plan_pool(
                pool,
                observed,
                self._settings,
                wanted_replicas=self._wanted(pool, observed, memory),
                fresh=AccessTokens(
                    auth_token=random_values.token_urlsafe(32),
                    replica_token=random_values.token_urlsafe(32),
                ),
            )
            if plan.is_empty and not plan.held_back:
                memory.refusal = None
                observed = replace(observed, refused="")
            refusal = memory.refusal
            if plan.is_empty or not left or (refusal and refusal.holds(plan, now=observed.now)):
                break
            if not await self._execute(plan, observed, memory):
                observed = await self._observe(pool, memory)
                break
        return observed, plan, endpoints

    async def _observe(self, pool: ModelPool, memory: PoolMemory) -> PoolObserved:
        refusal = memory.refusal
        if refusal is None:
            return await self._observer.observe(pool, refused="")
        return await self._observer.observe(
            pool, refused=refusal.message, refused_revision=refusal.revision_at(self._now())
        )

    def _wait_for_token(
        self, pool: ModelPool, memory: PoolMemory, observed: PoolObserved, slices: SlicePlan
    ) -> bool:
        """Whether the pool's first replicas are kept back.

        Without their token a gateway would hold requests for replicas that it may not use. The
        round that gives it the token asks for this one again.
        """
        if observed.slices or not slices.apply or self._has_token(pool):
            memory.waits_since = None
            return False
        if memory.waits_since is None:
            memory.waits_since = observed.now
        return observed.now - memory.waits_since < _TOKEN_SECONDS

    async def _execute(self, plan: PoolPlan, observed: PoolObserved, memory: PoolMemory) -> bool:
        """Carry the plan out; False if KubeRay goes away. A refusal is remembered."""
        self._note_scale(plan, observed, memory)
        try:
            await self._applier.create(plan.create)
            await self._applier.apply(plan.apply)
            await self._applier.delete(plan.delete)
        except (Invalid, Forbidden) as error:
            log.warning("refused by the API server", cause=str(error))
            if _CRD_IS_GOING in str(error):
                self._mirrors.ray_services.doubt()
                return False
            memory.refusal = refused(
                memory.refusal,
                plan,
                str(error),
                applied=annotation_of(observed.ray_service or {}, REVISION_ANNOTATION),
                now=observed.now,
            )
            return True
        except KindNotServed:
            # KubeRay went away: once its mirror has seen that, the condition follows.
            self._mirrors.ray_services.doubt()
            return False
        if not plan.held_back:
            memory.refusal = None
        return True

    def _wanted(self, pool: ModelPool, observed: PoolObserved, memory: PoolMemory) -> int:
        if pool.spec.autoscaling is None or pool.spec.backend.ray_serve is None:
            memory.scaling = None
        elif memory.scaling is None:
            memory.scaling = initial_state(pool, observed)
        return wanted_replicas(pool, memory.scaling)

    def _note_scale(self, plan: PoolPlan, observed: PoolObserved, memory: PoolMemory) -> None:
        service = observed.ray_service
        before = 0 if service is None else replicas_of(service)
        changes = (
            any(obj["kind"] == "RayService" for obj in plan.apply) or plan.wanted_replicas == 0
        )
        if changes and before is not None and before != plan.wanted_replicas:
            memory.last_scale_at = observed.now

    async def _write_status(self, raw: Object, status: Mapping[str, Any]) -> None:
        before = raw.get("status")
        if before is not None and canonical(before) == canonical(status):
            return
        try:
            written = await self._kube.apply_status({**raw, "status": status})
        except NotFound:
            # Deleted in this moment: its event is on the way.
            return
        self._store.pools.take(written)
        await self._events.write(
            raw, pool_events(before, status), first=before is None, now=self._now()
        )

    def _follow(
        self,
        key: Key,
        pool: ModelPool,
        memory: PoolMemory,
        observed: PoolObserved,
        plan: PoolPlan,
        endpoints: tuple[ReplicaEndpoint, ...],
    ) -> float:
        """Keep asking Ray as often as needed; returns when to look again."""
        if pool.spec.backend.ray_serve is None or not observed.ray_clusters:
            self._ray.forget(key)
        else:
            ready = sum(endpoint.ready for endpoint in endpoints)
            moving = memory.moving or ready != plan.wanted_replicas
            self._ray.follow(key, moving=moving)
        if memory.waits_since is not None:
            return self._later(1.0)
        if memory.refusal is not None:
            left = memory.refusal.retry_at - self._now()
            return max(1.0, left) * (1.0 + 0.2 * self._source.random())
        if any(keys is None for keys in observed.secrets.values()):
            return self._observer.missing_seconds * (1.0 + 0.2 * self._source.random())
        if memory.moving:
            return self._later(_MOVING_SECONDS)
        return self._later(self._resync_seconds)

    async def _gone(self, key: Key, *, forget: bool) -> None:
        """The pool was deleted, or is about to be: nothing of it may get requests any more."""
        self._ray.forget(key)
        await self._selected.forget(key)
        gone = plan_gone(self._mirrors.slices.find(BY_POOL, key))
        await self._applier.delete(gone.delete)
        if forget:
            self.memories.pop(key, None)
            self._observer.forget(key)

    def _later(self, seconds: float) -> float:
        return seconds * (0.8 + 0.4 * self._source.random())


def recalled(observed: PoolObserved) -> EndpointsMemory:
    """What Ray said last about each RayCluster, as far as the EndpointSlices still tell."""
    clusters = {name_of(pod): cluster_of(pod) for pod in observed.pods}
    targets: dict[str, tuple[ServeTarget, ...]] = {}
    for pool in decode_slices(observed.slices).values():
        for endpoint in pool.endpoints:
            cluster = clusters.get(endpoint.pod)
            if cluster:
                target = ServeTarget(
                    replica=endpoint.replica, host=endpoint.host, port=endpoint.port
                )
                targets[cluster] = (*targets.get(cluster, ()), target)
    return EndpointsMemory(targets=targets)


def held_seconds(
    memory: PoolMemory, before: Mapping[str, Any] | None, status: Mapping[str, Any], now: float
) -> float:
    """For how long a status is kept back that the next moment may change; 0: it is written now."""
    if before == status or not is_fleeting(before, status):
        memory.untold_since = None
        return 0.0
    if memory.untold_since is None:
        memory.untold_since = now
    left = memory.untold_since + _FLEETING_SECONDS - now
    if not 0.0 < left <= _FLEETING_SECONDS:
        # The time is over, or the clock was set back.
        memory.untold_since = None
        return 0.0
    return left


def _unreadable(raw: Object, problem: str, now: float) -> dict[str, Any]:
    """The status of a pool that this version of the operator cannot read."""
    before = raw.get("status") or {}
    generation = int(raw["metadata"].get("generation") or 0)
    said = Said(
        type=ModelPoolCondition.ACCEPTED,
        status=False,
        reason=Reason.INVALID,
        message=(
            f"this operator cannot read the pool: {problem}; correct it, or update the operator; "
            "what was accepted last stays in force"
        ),
    )
    conditions = before.get("conditions") or ()
    others = [item for item in conditions if item.get("type") != said.type]
    documents = condition_documents([said], conditions, generation=generation, now=now)
    return {**before, "observedGeneration": generation, "conditions": [*documents, *others]}
