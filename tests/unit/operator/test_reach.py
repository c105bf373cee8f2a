from __future__ import annotations

from dataclasses import replace

import pytest

from pointsman_operator.observed import GatewayView, PoolObserved, PoolReport
from pointsman_operator.reach import Reach, reach_of
from tests.unit.operator.scenes import NOW, gateway, made_pool

SERVED = {"team/chat": PoolReport(serving_replicas=1)}
UNREACHED = {"team/chat": PoolReport(serving_replicas=0)}
STARTING = replace(gateway(), reports=tuple(replace(r, ready=False) for r in gateway().reports))


@pytest.mark.parametrize(
    ("reach", "gateways"),
    [
        (Reach.NO_POD, (GatewayView(name="default"),)),
        (Reach.SILENT, (GatewayView(name="default", pods=("default-0",)),)),
        (Reach.SILENT, (gateway(pools=SERVED, ages=(60, 60)),)),
        (Reach.SILENT, (STARTING,)),
        (Reach.NO_TABLE, (gateway(),)),
        (Reach.NO_REPLICA, (gateway(pools=UNREACHED),)),
        (Reach.REACHED, (gateway(pools=SERVED),)),
        # One gateway that reaches it is enough; others that have no route do not count.
        (Reach.REACHED, (gateway(pools=SERVED), GatewayView(name="edge"))),
        (Reach.NO_POD, (GatewayView(name="default"), gateway(name="other", pools=SERVED))),
    ],
)
def test_requests_get_as_far_as_the_gateways_with_a_route_report(
    reach: Reach, gateways: tuple[GatewayView, ...]
) -> None:
    routes = frozenset({"default", "edge"})
    observed = PoolObserved(now=NOW, gateways=gateways, routed_by=routes)

    found = reach_of(made_pool(), observed, stale_seconds=10)

    assert reach is found.reach
    assert (reach is Reach.REACHED) is found.serves


def test_the_network_is_not_blamed_when_no_gateway_has_a_route() -> None:
    observed = PoolObserved(now=NOW, gateways=(gateway(),), routed_by=frozenset())

    found = reach_of(made_pool(), observed, stale_seconds=10)

    assert (Reach.NO_ROUTE, True) == (found.reach, found.serves)
    assert "name it in the targets of a RoutePolicy" in found.why
    assert "NetworkPolic" not in found.why
