"""The pool side of the operator over an API in memory: all real but the API, Ray and the clock."""

from __future__ import annotations

import random
from typing import Any

from pointsman_kube.kinds import CONTROLLER_REVISION, RAY_SERVICE, SECRET, Kind, Object, Ref
from pointsman_operator.apply import Applier
from pointsman_operator.conditions import condition_of
from pointsman_operator.events import EventWriter
from pointsman_operator.gateway_reports import GatewayReports
from pointsman_operator.mirrors import Mirrors
from pointsman_operator.observe import Observer
from pointsman_operator.ray_api import RayApi
from pointsman_operator.ray_polls import RayPolls
from pointsman_operator.reconcile_pool import PoolReconciler
from pointsman_operator.secret_reader import SecretReader
from pointsman_operator.selected_pods import SelectedPods
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.store import Store
from tests.unit.operator.scenes import NOW, made_pool
from tests.unit.operator_shell.small_api import SmallApi

KEY = ("team", "chat")
REVISION_NAMES = "controllerrevisions.apps team/chat-"


class PoolSide:
    """One pool ``team/chat`` and everything that reconciles it.

    Args:
        api: of an operator that ran before; its watches have told nothing yet.
    """

    def __init__(self, api: SmallApi | None = None) -> None:
        self.now = NOW
        self.api = api or SmallApi()
        kube: Any = self.api
        self.settings = OperatorSettings()
        self.store = Store()
        self.mirrors = Mirrors(
            kube,
            namespace=self.settings.namespace,
            pool_changed=lambda key: None,
            endpoints_changed=lambda key: None,
            gateway_changed=lambda: None,
            gateway_pod_changed=lambda key, old, new: None,
        )
        self.secrets = SecretReader(kube, clock=self.clock)
        self.tokens_came = 0
        self.applier = Applier(kube, self.secrets, self.mirrors)
        reports = GatewayReports(
            lambda: self.mirrors.gateway_pods,
            names=self.settings.gateways,
            port=1,
            changed=lambda *_: None,
            now=self.clock,
        )
        self.ray = RayPolls(
            RayApi(),
            clusters=lambda: self.mirrors.ray_clusters,
            pods=lambda: self.mirrors.pods,
            token=lambda key: self.observer.ray_token(key),
            wrong_token=lambda key: None,
            changed=lambda key: None,
            url_template="http://{host}:1",
            now=self.clock,
        )
        selected = SelectedPods(kube, pool_changed=lambda key: None)
        self.observer = Observer(
            kube,
            mirrors=self.mirrors,
            selected=selected,
            secrets=self.secrets,
            ray=self.ray,
            gateways=reports,
            token_came=self._token_came,
            access_age_seconds=600.0,
            now=self.clock,
        )
        self.reconciler = PoolReconciler(
            kube,
            store=self.store,
            mirrors=self.mirrors,
            observer=self.observer,
            applier=self.applier,
            selected=selected,
            ray=self.ray,
            events=EventWriter(kube, reporter="test"),
            settings=self.settings,
            route_problems=lambda pool: (),
            has_token=lambda pool: True,
            resync_seconds=600.0,
            now=self.clock,
            source=random.Random(0),
        )

    def clock(self) -> float:
        return self.now

    def _token_came(self) -> None:
        self.tokens_came += 1

    def make_pool(self, uid: str = "uid-chat", created: str = "2026-11-01T00:00:00Z") -> None:
        """Somebody applies the pool, maybe again under another uid."""
        pool = made_pool(replicas=1).model_dump(mode="json", by_alias=True, exclude_none=True)
        pool["metadata"] |= {"uid": uid, "creationTimestamp": created, "resourceVersion": "1"}
        pool |= {"apiVersion": "pointsman.dev/v1alpha1", "kind": "ModelPool"}
        self.api.put(pool)
        self.store.pools.take(self.api.objects["modelpools.pointsman.dev team/chat"])

    async def round(self, after_seconds: float = 0.0) -> float | None:
        """One reconcile, some time after the one before."""
        self.now += after_seconds
        return await self.reconciler.reconcile(KEY)

    def condition(self, kind: str) -> Any:
        """A condition as it was written last."""
        pool = self.api.objects["modelpools.pointsman.dev team/chat"]
        return condition_of(pool.get("status"), kind)

    def get(self, kind: Kind, name: str) -> Object | None:
        """What the API has."""
        return self.api.objects.get(str(Ref(kind=kind, namespace="team", name=name)))

    @property
    def secret(self) -> Object | None:
        """The pool's Secret, whosever it is."""
        return self.get(SECRET, "chat-access")

    @property
    def service(self) -> Object | None:
        """The RayService of the pool's name, whosever it is."""
        return self.get(RAY_SERVICE, "chat")

    def delete(self, kind: Kind, name: str) -> None:
        """Somebody else deletes an object, and the watches tell it."""
        ref = Ref(kind=kind, namespace="team", name=name)
        held = self.api.objects[str(ref)]
        self.api.take_away(ref)
        for mirror in self.mirrors:
            if mirror.kind is kind:
                mirror.drop("team", name, uid=held["metadata"].get("uid", ""))

    def collect_garbage(self, uid: str) -> None:
        """Delete what a pool of this uid owned."""
        for obj in list(self.api.objects.values()):
            owners = obj["metadata"].get("ownerReferences") or ()
            if any(owner["uid"] == uid for owner in owners):
                kinds = {kind.name: kind for kind in (SECRET, RAY_SERVICE, CONTROLLER_REVISION)}
                self.delete(kinds[obj["kind"]], obj["metadata"]["name"])
