"""The gateway side of the operator over an API in memory; also reports and clock are made up."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from pointsman_kube.kinds import CONFIG_MAP, Object, Ref
from pointsman_operator.apply import Applier
from pointsman_operator.conditions import condition_of
from pointsman_operator.credential_reads import CredentialReads
from pointsman_operator.events import EventWriter
from pointsman_operator.mirrors import Mirrors
from pointsman_operator.observed import GatewayView
from pointsman_operator.reconcile_gateway import GatewayReconciler
from pointsman_operator.secret_reader import SecretReader
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.store import Store
from tests.unit.operator.scenes import NOW
from tests.unit.operator_shell.small_api import SmallApi

ROUTES = "pointsman-default-routes-0"


class GatewaySide:
    """The gateway ``default`` and everything that reconciles it."""

    def __init__(self) -> None:
        self.api = SmallApi()
        self.views: list[GatewayView] = []
        """What the gateways' pods say."""
        kube: Any = self.api
        reports: Any = SimpleNamespace(views=lambda: self.views)
        self.settings = OperatorSettings(namespace="system")
        self.store = Store()
        self.mirrors = Mirrors(
            kube,
            namespace="system",
            pool_changed=lambda key: None,
            endpoints_changed=lambda key: None,
            gateway_changed=lambda: None,
            gateway_pod_changed=lambda key, old, new: None,
        )
        secrets = SecretReader(kube, clock=self.clock)
        self.reconciler = GatewayReconciler(
            kube,
            store=self.store,
            mirrors=self.mirrors,
            secrets=secrets,
            credentials=CredentialReads(secrets, changed=lambda: None),
            applier=Applier(kube, secrets, self.mirrors),
            reports=reports,
            events=EventWriter(kube, reporter="test"),
            settings=self.settings,
            planned=lambda pools, policies: None,
            resync_seconds=600.0,
            now=self.clock,
            source=random.Random(0),
        )

    def clock(self) -> float:
        return NOW

    def take(self, item: BaseModel, kind: str, **spec: Any) -> None:
        """Somebody applies an object; with fields in its spec that this version cannot read."""
        document = item.model_dump(mode="json", by_alias=True, exclude_none=True)
        metadata = {"resourceVersion": "1", "uid": f"uid-{kind}", **document["metadata"]}
        document |= {"apiVersion": "pointsman.dev/v1alpha1", "kind": kind, "metadata": metadata}
        document["spec"] = {**document["spec"], **spec}
        self.api.put(document)
        table = self.store.pools if kind == "ModelPool" else self.store.policies
        table.take(document)

    def put(self, config_map: Object) -> None:
        """There is this part of the route table, and the watch has told it."""
        metadata = {**config_map["metadata"], "uid": "uid-routes", "resourceVersion": "1"}
        self.api.put({**config_map, "metadata": metadata})
        self.mirrors.config_maps.take({**config_map, "metadata": metadata})

    def delete_routes(self) -> None:
        """Somebody deletes the route table, and the watch tells it."""
        ref = Ref(kind=CONFIG_MAP, namespace="system", name=ROUTES)
        held = self.api.objects[str(ref)]
        self.api.take_away(ref)
        self.mirrors.config_maps.drop("system", ROUTES, uid=held["metadata"]["uid"])

    @property
    def config_maps(self) -> list[Object]:
        """All parts of the route table that the API has."""
        return [item for item in self.api.objects.values() if item["kind"] == "ConfigMap"]

    def policy_condition(self, name: str, kind: str) -> Any:
        """A condition of a RoutePolicy as it was written last."""
        policy = self.api.objects[f"routepolicies.pointsman.dev team/{name}"]
        return condition_of(policy.get("status"), kind)
