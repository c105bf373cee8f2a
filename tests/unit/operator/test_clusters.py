from __future__ import annotations

from typing import Any

import pytest

from pointsman_operator.clusters import REDIS_FINALIZER, stuck_clusters
from pointsman_operator.objects import name_of
from pointsman_operator.times import seconds_of, timestamp
from tests.unit.operator.scenes import NOW, ray_cluster, worker_pod

OURS = {"app.kubernetes.io/managed-by": "pointsman-operator"}


def going(*, finalizers: Any = (REDIS_FINALIZER,), labels: Any = OURS) -> Any:
    return ray_cluster(
        "one",
        deletionTimestamp=timestamp(NOW),
        finalizers=list(finalizers),
        labels=dict(labels),
    )


def cleanup_pod(phase: str) -> Any:
    pod = worker_pod("cleanup", "10.0.0.9", status={"phase": phase})
    pod["metadata"]["labels"]["ray.io/node-type"] = "redis-cleanup"
    return pod


@pytest.mark.parametrize(
    "pods",
    [
        [],
        [worker_pod("a", "10.0.0.1")],
        [worker_pod("a", "10.0.0.1", cluster="two", going=True)],
        [cleanup_pod("Failed")],
    ],
    ids=["no pod", "nobody ends its pods", "another cluster drains", "clearing failed"],
)
def test_a_cluster_that_only_kuberays_finalizer_holds_is_stuck(pods: Any) -> None:
    assert ["one"] == [name_of(item) for item in stuck_clusters([going()], pods)]


@pytest.mark.parametrize(
    ("cluster", "pods"),
    [
        (going(), [worker_pod("a", "10.0.0.1", going=True)]),
        (going(), [cleanup_pod("Running")]),
        (going(finalizers=("somebody.else/s",)), []),
        (going(labels={}), []),
        (ray_cluster("one", finalizers=[REDIS_FINALIZER], labels=OURS), []),
    ],
    ids=["drains", "is cleared", "held by others", "somebody else's", "not deleted"],
)
def test_a_cluster_is_not_stuck_when_somebody_works_on_it_or_holds_it(
    cluster: Any, pods: Any
) -> None:
    assert () == stuck_clusters([cluster], pods)


def test_times_are_written_as_kubernetes_does() -> None:
    assert "2027-01-15T08:00:00Z" == timestamp(NOW)
    assert NOW == seconds_of(timestamp(NOW))
    assert None is seconds_of("yesterday")
    assert None is seconds_of(None)
