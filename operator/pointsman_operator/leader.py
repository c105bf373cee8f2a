"""Everything that the operator that acts does, put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from pointsman_kube.client import Kube
from pointsman_kube.identity import Key
from pointsman_kube.kinds import Object
from pointsman_kube.mirror import Mirror
from pointsman_operator.apply import Applier
from pointsman_operator.autoscale import Autoscaler
from pointsman_operator.conditions import condition_of
from pointsman_operator.credential_reads import CredentialReads
from pointsman_operator.events import EventWriter
from pointsman_operator.gateway_reports import GatewayReports
from pointsman_operator.metrics import OperatorMetrics
from pointsman_operator.mirrors import BY_POOL, Mirrors
from pointsman_operator.objects import Owner
from pointsman_operator.observe import Observer
from pointsman_operator.observed import GatewayReport
from pointsman_operator.process_settings import ProcessSettings
from pointsman_operator.ray_api import RayApi
from pointsman_operator.ray_polls import RayPolls
from pointsman_operator.reconcile_gateway import GatewayReconciler, pools_named
from pointsman_operator.reconcile_pool import PoolReconciler
from pointsman_operator.secret_reader import SecretReader
from pointsman_operator.selected_pods import SelectedPods
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.store import Change, Store
from pointsman_operator.stuck_clusters import StuckClusters
from pointsman_operator.sweep import Sweeper
from pointsman_operator.work_queue import Debounce, WorkQueue

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.1
"""How long news about a pool's objects are gathered: pods and clusters change in crowds."""
POLICY_EDIT_SECONDS = 0.005
"""How long edits of policies are gathered before the route table is made anew."""
POOL_EDIT_SECONDS = 0.3
"""The same for pools, which come in crowds and serve nothing for their first seconds."""
CROWD_SECONDS = 2.0
"""The longest that news of pools or tokens are gathered while more and more of them come."""
CROWD = 32
"""When so many pools wait for their turn, those that do not serve yet are looked at less often."""
CROWDED_GATHER_SECONDS = 0.5
"""How long news about such a pool's objects are gathered then."""
FIRST_REPORTS_SECONDS = 5.0
"""How long a start waits for gateways that do not answer."""
TOKEN_SECONDS = 0.5
"""The same for tokens, which come in crowds when the operator starts."""


class Leader:
    """The acting operator: from the store of what is wanted to the cluster.

    Args:
        kube: a connection whose writes are fenced by the Lease.
        owner: of what is written into the operator's namespace.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        settings: OperatorSettings,
        process: ProcessSettings,
        metrics: OperatorMetrics,
        owner: Owner | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._policy_edited = Debounce(self._plan_gateways, POLICY_EDIT_SECONDS)
        self._pool_edited = Debounce(
            self._plan_gateways, POOL_EDIT_SECONDS, most_seconds=CROWD_SECONDS
        )
        self._tokens_came = Debounce(self._plan_gateways, TOKEN_SECONDS, most_seconds=CROWD_SECONDS)
        self.store = Store(self._store_changed)
        self.reports = GatewayReports(
            lambda: self.mirrors.gateway_pods,
            names=settings.gateways,
            port=settings.gateway_admin_port,
            changed=self._report_changed,
            polled=lambda ok: metrics.polled("gateway", ok),
            now=now,
        )
        self.mirrors = Mirrors(
            kube,
            namespace=settings.namespace,
            pool_changed=self._pool_objects_changed,
            endpoints_changed=self._endpoints_changed,
            gateway_changed=self._gateway_objects_changed,
            gateway_pod_changed=self._gateway_pod_changed,
            kuberay_changed=self._all_pools_changed,
            listed=self._sweep_soon,
        )
        self._secrets = SecretReader(kube)
        self._credentials = CredentialReads(self._secrets, changed=self._tokens_came)
        self._selected = SelectedPods(kube, pool_changed=self._endpoints_changed)
        self._applier = applier = Applier(
            kube,
            self._secrets,
            self.mirrors,
            wrote=lambda resource: metrics.writes.labels(resource).inc(),
        )
        self.sweeper = Sweeper(
            kube,
            store=self.store,
            mirrors=lambda: self.mirrors,
            applier=lambda: applier,
            settings=settings,
            interval_seconds=process.sweep_seconds,
        )
        self._ray_api = RayApi()
        self._ray = RayPolls(
            self._ray_api,
            clusters=lambda: self.mirrors.ray_clusters,
            pods=lambda: self.mirrors.pods,
            token=self._ray_token,
            wrong_token=self._token_refused,
            changed=self._replicas_changed,
            url_template=settings.ray_dashboard_url_template,
            polled=lambda ok: metrics.polled("ray", ok),
            workers=process.ray_workers,
            now=now,
        )
        self._observer = observer = Observer(
            kube,
            mirrors=self.mirrors,
            selected=self._selected,
            secrets=self._secrets,
            ray=self._ray,
            gateways=self.reports,
            token_came=self._tokens_came,
            access_age_seconds=process.resync_seconds,
            now=now,
        )
        events = EventWriter(kube, reporter=process.identity)
        self._gateway_reconciler = GatewayReconciler(
            kube,
            store=self.store,
            mirrors=self.mirrors,
            secrets=self._secrets,
            credentials=self._credentials,
            applier=applier,
            reports=self.reports,
            events=events,
            settings=settings,
            planned=self._planned,
            resync_seconds=process.resync_seconds,
            now=now,
            owner=owner,
        )
        self._pool_reconciler = PoolReconciler(
            kube,
            store=self.store,
            mirrors=self.mirrors,
            observer=observer,
            applier=applier,
            selected=self._selected,
            ray=self._ray,
            events=events,
            settings=settings,
            route_problems=self._gateway_reconciler.route_problems,
            has_token=self._gateway_reconciler.has_token,
            resync_seconds=process.resync_seconds,
            now=now,
            owner=owner,
        )
        self.pools = WorkQueue(
            "pools",
            self._pool_reconciler.reconcile,
            workers=process.workers,
            on_done=metrics.on_done("pools"),
        )
        self.gateways = WorkQueue(
            "gateways",
            self._gateway_reconciler.reconcile,
            workers=2,
            on_done=metrics.on_done("gateways"),
        )
        self.policies = WorkQueue(
            "policies",
            self._gateway_reconciler.reconcile_policy,
            workers=4,
            on_done=metrics.on_done("policies"),
        )
        self._stuck = StuckClusters(
            kube,
            clusters=lambda: self.mirrors.ray_clusters,
            pods=lambda: self.mirrors.pods,
            patience_seconds=process.stuck_seconds,
            now=now,
        )
        self._autoscaler = Autoscaler(
            store=self.store,
            memories=self._pool_reconciler.memories,
            reports=self.reports,
            changed=self._pool_changed,
            stale_seconds=settings.gateway_stale_seconds,
            now=now,
        )

    @property
    def queues(self) -> tuple[WorkQueue[Any], ...]:
        """All queues, those that ask Ray and the gateways included."""
        own = (self.pools, self.gateways, self.policies)
        return (*own, self._credentials.queue, self._ray.queue, self.reports.queue)

    def all_mirrors(self) -> Iterable[Mirror]:
        """All mirrors."""
        return (*self.mirrors, *self._selected)

    async def run(self) -> None:
        """Act until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.mirrors.run(), name="mirrors")
                group.create_task(self.reports.queue.run(), name="gateway reports")
                group.create_task(self._credentials.queue.run(), name="credentials")
                await self.mirrors.answered()
                # A table made from half of the pools would take the other half out of service.
                await self.sweeper.wait_synced()
                # Nor may what the gateways run look unknown only because nobody has asked yet.
                await asyncio.wait(
                    [group.create_task(self.reports.settled())], timeout=FIRST_REPORTS_SECONDS
                )
                log.info(
                    "in step with the cluster",
                    pools=len(self.store.pools),
                    policies=len(self.store.policies),
                )
                self._plan_gateways()
                for queue in (self.gateways, self.policies, self.pools, self._ray.queue):
                    group.create_task(queue.run(), name=queue.name)
                group.create_task(self.sweeper.run(), name="sweeper")
                group.create_task(self._autoscaler.run(), name="autoscaler")
                group.create_task(self._stuck.run(), name="stuck clusters")
                group.create_task(self._watch_staleness(), name="stale reports")
        finally:
            await self._selected.close()
            await self._ray_api.close()
            await self.reports.close()

    def _store_changed(self, change: Change) -> None:
        pools = change.kind is self.store.pools.kind
        if change.asks_for_more and pools:
            # Those that exist go before those that are made, which come in crowds.
            self.pools.add(change.key, urgent=change.old is not None)
            self._pool_edited()
        elif change.asks_for_more:
            policy = self.store.policies.get(change.key)
            if policy is None or policy.spec.gateway_ref.name not in self._settings.gateways:
                # No gateway's plan asks for its status.
                self.policies.add(change.key, urgent=True)
            for pool in _pools_in(change.old) | _pools_in(change.new):
                self.pools.add_later(pool, GATHER_SECONDS)
            self._policy_edited()
        if pools and _ready(change.old) != _ready(change.new):
            for policy in self.store.policies.all():
                if change.key in pools_named(policy):
                    self.policies.add((policy.metadata.namespace, policy.metadata.name))

    def _sweep_soon(self) -> None:
        self.sweeper.ask()

    def _ray_token(self, key: Key) -> str | None:
        return self._observer.ray_token(key)

    def _token_refused(self, key: Key) -> None:
        """Somebody has made the pool's Secret anew: read it again."""
        self._observer.forget(key)
        self.pools.add(key)

    def _pool_objects_changed(self, key: Key) -> None:
        """A round looks at its own writes by itself, before it ends."""
        if self._applier.telling:
            return
        crowded = len(self.pools) >= CROWD and not self._serves(key)
        self.pools.add_later(key, CROWDED_GATHER_SECONDS if crowded else GATHER_SECONDS)

    def _gateway_objects_changed(self) -> None:
        if not self._applier.telling:
            self._policy_edited()

    def _pool_changed(self, key: Key) -> None:
        self.pools.add_later(key, GATHER_SECONDS)

    def _endpoints_changed(self, key: Key) -> None:
        """A pool that serves goes before those that are only being made, however many."""
        if self._serves(key):
            self.pools.add_later(key, GATHER_SECONDS, urgent=True)
        else:
            self._pool_objects_changed(key)

    def _replicas_changed(self, key: Key) -> None:
        """Ray tells of replicas that a pool has or had: none of them waits, the first included."""
        self.pools.add_later(key, GATHER_SECONDS, urgent=self._serves(key))

    def _serves(self, key: Key) -> bool:
        return bool(self.mirrors.slices.find(BY_POOL, key))

    def _all_pools_changed(self) -> None:
        for key in self.store.pools.keys():  # noqa: SIM118
            self.pools.add(key)

    def _plan_gateways(self) -> None:
        for gateway in self._settings.gateways:
            self.gateways.add(gateway)

    def _planned(self, pools: Iterable[str], policies: Iterable[Key]) -> None:
        self._add_pools(pools)
        for policy in policies:
            # Its user waits to hear what became of the edit.
            self.policies.add(policy, urgent=_is_edited(self.store.policies.raw(policy)))

    def _gateway_pod_changed(self, key: Key, old: object, new: object) -> None:
        self.reports.pod_changed(key, old, new)  # type: ignore[arg-type]
        if old is None or new is None:
            self._add_policies()

    def _report_changed(
        self, gateway: str, before: GatewayReport | None, after: GatewayReport | None
    ) -> None:
        for policy in self._gateway_reconciler.policies_between(gateway, before, after):
            self.policies.add(policy)
        self._add_pools(_pools_between(before, after))

    def _add_policies(self) -> None:
        for policy in self.store.policies.all():
            self.policies.add((policy.metadata.namespace, policy.metadata.name))

    def _add_pools(self, keys: Iterable[str]) -> None:
        """Add pools by their keys in route tables."""
        for key in keys:
            namespace, _, name = key.rpartition("/")
            self._pool_changed((namespace or "default", name))

    async def _watch_staleness(self) -> None:
        """A gateway that falls silent sends no event: what it said has to run out by itself."""
        fresh = self.reports.fresh(self._settings.gateway_stale_seconds)
        while True:
            await asyncio.sleep(1.0)
            now = self.reports.fresh(self._settings.gateway_stale_seconds)
            if now != fresh:
                fresh = now
                self._add_policies()
                self._all_pools_changed()


def _is_edited(obj: Object | None) -> bool:
    """Whether the status tells of another generation than the object is of."""
    if obj is None:
        return False
    seen = (obj.get("status") or {}).get("observedGeneration")
    return seen is not None and seen != obj["metadata"].get("generation")


def _pools_in(policy: Object | None) -> set[Key]:
    """The pools that a policy's targets name, as the API server sent it."""
    if policy is None:
        return set()
    namespace = str(policy["metadata"].get("namespace") or "")
    references = (
        target.get("poolRef") or {}
        for rule in (policy.get("spec") or {}).get("rules") or ()
        for target in rule.get("targets") or ()
    )
    return {
        (str(reference.get("namespace") or namespace), str(reference.get("name")))
        for reference in references
    }


def _ready(pool: object) -> object:
    status = pool.get("status") if isinstance(pool, dict) else None
    return condition_of(status, "Ready").get("status")


def _pools_between(before: GatewayReport | None, after: GatewayReport | None) -> Iterable[str]:
    old = {} if before is None else before.pools
    new = {} if after is None else after.pools
    for key in {*old, *new}:
        was, now = old.get(key), new.get(key)
        if (was is None or now is None) or was.serving_replicas != now.serving_replicas:
            yield key
