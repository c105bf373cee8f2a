"""One round for one pool: observe, plan, write what differs, tell the truth."""

from __future__ import annotations

import random
import secrets as random_values
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import structlog

from pointsman_api.compile import RouteProblem
from pointsman_api.conditions import ModelPoolCondition, Reason
from pointsman_api.endpoint_slices import ReplicaEndpoint
from pointsman_api.labels import REPLICA_TOKEN_KEY, REVISION_ANNOTATION
from pointsman_api.modelpool import ModelPool
from pointsman_kube.client import Kube
from pointsman_kube.errors import Forbidden, Invalid, KindNotServed
from pointsman_kube.identity import Key
from pointsman_kube.kinds import RAY_SERVICE, Object
from pointsman_operator.apply import Applier
from pointsman_operator.conditions import Said, condition_documents
from pointsman_operator.endpoints import SlicePlan, join_endpoints, plan_slices
from pointsman_operator.events import EventWriter
from pointsman_operator.mirrors import BY_POOL, Mirrors
from pointsman_operator.objects import Owner, annotation_of, is_going, metadata_of
from pointsman_operator.observe import Observer
from pointsman_operator.observed import PoolObserved
from pointsman_operator.plan import AccessTokens, PoolPlan, plan_gone, plan_pool
from pointsman_operator.pool_memory import PoolMemory, held_seconds, recalled
from pointsman_operator.ray_polls import RayPolls
from pointsman_operator.ray_service import replicas_of
from pointsman_operator.refusal import refused
from pointsman_operator.rollout import MOVING
from pointsman_operator.routed_by import routed_by
from pointsman_operator.scaling import initial_state, wanted_replicas
from pointsman_operator.secret_reader import decoded
from pointsman_operator.selected_pods import SelectedPods
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.status import (
    pool_events,
    pool_rollout,
    pool_status,
    rollout_moves,
)
from pointsman_operator.status_writer import StatusWriter
from pointsman_operator.store import Store

__all__ = ["PoolMemory", "PoolReconciler"]

log = structlog.get_logger(__name__)

_ROUNDS = 3
"""Of observe, plan and write in one reconcile: what was written is looked at again at once."""
_MOVING_SECONDS = 15.0
"""Deadlines are noticed by looking."""
_TOKEN_SECONDS = 5.0
"""How long a pool's first replicas wait at most until gateways have the token for them."""
_BLOCKED_SECONDS = 5.0
"""Until something is looked at again that is in the way and that no mirror need show."""
_CRD_IS_GOING = "custom resource definition is terminating"


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
        self._store = store
        self._mirrors = mirrors
        self._observer = observer
        self._applier = applier
        self._selected = selected
        self._ray = ray
        self._status = StatusWriter(
            kube, events, events_between=pool_events, took=store.pools.take, now=now
        )
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
            problem = self._store.pools.problem(key)
            if good := self._store.pools.last_good(key):
                # It serves on as it was, and its replicas come and go.
                await self._settle(good, await self._recall(key, good))
            await self._status.write(raw, _unreadable(raw, problem, self._now()))
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
        await self._status.write(raw, status)
        return later

    async def _recall(self, key: Key, pool: ModelPool) -> PoolMemory:
        """What is remembered of a pool; at first what its EndpointSlices and Ray say."""
        memory, uid = self.memories.get(key), pool.metadata.uid or ""
        if memory is not None and memory.uid != uid:
            # Deleted and made again before anybody looked.
            log.info("a pool of the same name was deleted", pool=pool.key)
            self._forget(key)
            memory = None
        if memory is None:
            observed = await self._observer.observe(pool, refused="")
            await self._ray.read_first(key)
            memory = PoolMemory(uid=uid, endpoints=recalled(observed))
            self.memories[key] = memory
        return memory

    def _forget(self, key: Key) -> None:
        self._ray.forget(key)
        self._observer.forget_pool(key)
        self.memories.pop(key, None)

    async def _settle(
        self, pool: ModelPool, memory: PoolMemory
    ) -> tuple[PoolObserved, PoolPlan, tuple[ReplicaEndpoint, ...]]:
        """Write until nothing is left to write."""
        routes = self._routed_by(pool)
        for left in reversed(range(_ROUNDS)):
            observed = await self._observe(pool, memory, routes)
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
            plan = self._plan(pool, observed, memory)
            if observed.ray_service is None and _makes_service(plan):
                hidden = await self._observer.find_hidden(pool, observed)
                if hidden is not None:
                    observed = hidden
                    plan = self._plan(pool, observed, memory)
            if plan.is_empty and not plan.held_back:
                memory.refusal = None
                observed = replace(observed, refused="")
            refusal = memory.refusal
            if plan.is_empty or not left or (refusal and refusal.holds(plan, now=observed.now)):
                break
            if not await self._execute(plan, observed, memory):
                observed = await self._observe(pool, memory, routes)
                break
        return observed, plan, endpoints

    async def _observe(
        self, pool: ModelPool, memory: PoolMemory, routes: frozenset[str]
    ) -> PoolObserved:
        refusal = memory.refusal
        return await self._observer.observe(
            pool,
            refused="" if refusal is None else refusal.message,
            refused_revision="" if refusal is None else refusal.revision_at(self._now()),
            routed_by=routes,
        )

    def _routed_by(self, pool: ModelPool) -> frozenset[str]:
        return routed_by(
            pool,
            self._store.policies.all(),
            gateways=self._settings.gateways,
            labels_of=self._labels_of,
            problems=self._route_problems(pool),
        )

    def _labels_of(self, namespace: str) -> dict[str, str]:
        found = self._mirrors.namespaces.get("", namespace)
        return dict(metadata_of(found or {}).get("labels") or {})

    def _plan(self, pool: ModelPool, observed: PoolObserved, memory: PoolMemory) -> PoolPlan:
        return plan_pool(
            pool,
            observed,
            self._settings,
            wanted_replicas=self._wanted(pool, observed, memory),
            fresh=self._fresh_tokens(pool, observed),
        )

    def _fresh_tokens(self, pool: ModelPool, observed: PoolObserved) -> AccessTokens:
        """Random values; of a running pool whose Secret is lost, what its gateways send."""
        told = None
        known = decoded(observed.access_secret).get(REPLICA_TOKEN_KEY)
        if not known and observed.ray_clusters:
            told = self._observer.known_replica_token(
                (pool.metadata.namespace, pool.metadata.name),
                namespace=self._settings.namespace,
                gateways=self._settings.gateways,
            )
        return AccessTokens(
            auth_token=random_values.token_urlsafe(32),
            replica_token=told or random_values.token_urlsafe(32),
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
        if observed.in_the_way:
            return self._later(_BLOCKED_SECONDS)
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
            self._forget(key)

    def _later(self, seconds: float) -> float:
        return seconds * (0.8 + 0.4 * self._source.random())


def _makes_service(plan: PoolPlan) -> bool:
    return any(item["kind"] == RAY_SERVICE.name for item in plan.apply)


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
