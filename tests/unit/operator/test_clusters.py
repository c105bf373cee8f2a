from __future__ import annotations

from typing import Any

import pytest

from pointsman_operator.clusters import REDIS_FINALIZER, stuck_clusters
from pointsman_operator.times import seconds_of, timestamp
from tests.unit.operator.scenes import NOW, ray_cluster, worker_pod


def going(age_seconds: float, *, finalizers: Any = (REDIS_FINALIZER,)) -> Any:
    return ray_cluster(
        "one", deletionTimestamp=timestamp(NOW - age_seconds), finalizers=list(finalizers)
    )


def test_a_cluster_that_only_kuberays_finalizer_holds_is_stuck() -> None:
    assert ["rayclusters.ray.io team/one"] == [
        str(ref) for ref in stuck_clusters([going(600)], [], now=NOW)
    ]


@pytest.mark.parametrize(
    ("cluster", "pods"),
    [
        (going(60), []),
        (going(600), [worker_pod("a", "10.0.0.1", going=True)]),
        (going(600, finalizers=("somebody.else/s",)), []),
        (ray_cluster("one", finalizers=[REDIS_FINALIZER]), []),
    ],
)
def test_a_cluster_is_not_stuck_when_it_is_young_drains_or_is_held_by_others(
    cluster: Any, pods: Any
) -> None:
    assert () == stuck_clusters([cluster], pods, now=NOW)


def test_times_are_written_as_kubernetes_does() -> None:
    assert "2027-01-15T08:00:00Z" == timestamp(NOW)
    assert NOW == seconds_of(timestamp(NOW))
    assert None is seconds_of("yesterday")
    assert None is seconds_of(None)
