"""Pools that want another number of replicas are told of, and no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from pointsman_operator.autoscale import Autoscaler
from pointsman_operator.gateway_reports import GatewayReports
from pointsman_operator.observed import GatewayReport, GatewayView, PoolReport
from pointsman_operator.reconcile_pool import PoolMemory
from pointsman_operator.scaling import ScalingState
from pointsman_operator.store import Store
from tests.contract.samples import pool_document

KEY = ("default", "chat")
AUTOSCALING = {"minReplicas": 1, "maxReplicas": 4, "scaleUpDelay": "2s"}


class Scene:
    """One autoscaled pool with one replica, and what a gateway says about it."""

    def __init__(self, **memory: Any) -> None:
        self.now = 100.0
        self.queued = 0
        self.changed: list[tuple[str, str]] = []
        self.store = Store()
        self.memory = PoolMemory(scaling=ScalingState(wanted=1), **memory)
        self.put(1, autoscaling=AUTOSCALING)
        self.autoscaler = Autoscaler(
            store=self.store,
            memories={KEY: self.memory, ("default", "gone"): PoolMemory()},
            reports=cast("GatewayReports", SimpleNamespace(views=self.views)),
            changed=self.changed.append,
            stale_seconds=10.0,
            now=lambda: self.now,
        )

    def put(self, version: int, **spec: Any) -> None:
        document = pool_document("chat", **spec)
        document["metadata"] |= {
            "uid": "u1",
            "resourceVersion": str(version),
            "generation": version,
        }
        self.store.pools.take(document)
        self.store.pools.get(KEY)

    def views(self) -> tuple[GatewayView, ...]:
        said = PoolReport(queued=self.queued, open_streams=0, serving_replicas=1)
        report = GatewayReport(
            pod="g", read_at=self.now, config_hash="", ready=True, pools={"chat": said}
        )
        return (GatewayView(name="default", pods=("g",), reports=(report,)),)

    def look(self, seconds: float) -> None:
        self.now += seconds
        self.autoscaler.look()

    @property
    def wanted(self) -> int:
        assert self.memory.scaling is not None
        return self.memory.scaling.wanted


def test_pool_is_told_once_when_the_load_has_been_high_for_its_delay() -> None:
    scene = Scene()
    scene.queued = 10_000
    scene.look(0.0)
    assert [] == scene.changed
    scene.look(3.0)
    scene.look(1.0)
    assert ([KEY], 4) == (scene.changed, scene.wanted)


def test_pool_is_left_alone_when_it_is_rolled_out() -> None:
    scene = Scene(rolling_out=True)
    scene.queued = 10_000
    scene.look(0.0)
    scene.look(60.0)
    assert ([], 1) == (scene.changed, scene.wanted)


def test_pool_scales_by_its_last_good_spec_when_an_edit_cannot_be_read() -> None:
    scene = Scene()
    scene.put(2, backend={"type": "Teapot"})
    scene.queued = 10_000
    scene.look(0.0)
    scene.look(3.0)
    assert ([KEY], 4) == (scene.changed, scene.wanted)


def test_pool_is_passed_over_when_it_is_not_autoscaled() -> None:
    scene = Scene()
    scene.put(2, replicas=1)
    scene.queued = 10_000
    scene.look(0.0)
    scene.look(60.0)
    assert [] == scene.changed
