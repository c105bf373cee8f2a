"""A replica over two pods on a real Kubernetes: made, hurt and taken away as one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e_cluster.load import Load
from tests.e2e_cluster.world import World, condition, pool_document

if TYPE_CHECKING:
    from tests.e2e_cluster.table import StoryTable

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

POOL = "spread"


def spread_document() -> dict[str, Any]:
    """A Simulated pool whose replica takes two pods."""
    document = pool_document(POOL, replicas=1)
    document["spec"]["backend"]["rayServe"]["parallelism"] = {"hosts": 2}
    return document


def test_replica_over_two_pods_answers_when_both_are_there(
    world: World, stories: StoryTable
) -> None:
    with stories.story("a pool of one replica over two pods") as row:
        world.apply(spread_document())
        seconds = _until_serving(world)
        row.note(f"Ready after {seconds:.1f} s")
        assert 2 == len(_living(world))
        assert 1 == len(world.replicas(POOL))
        status = world.pool(POOL)["status"]
        assert (1, 1) == (status["replicas"], status["readyReplicas"])
        code, body, _ = world.ask(POOL)
        assert 200 == code, body


def test_whole_replica_comes_anew_when_its_second_pod_is_killed(
    world: World, stories: StoryTable
) -> None:
    with stories.story("the second pod of a replica is killed under load") as row:
        (before,) = world.replicas(POOL).values()
        (member,) = [pod for pod in _living(world) if pod["metadata"]["name"] != before.pod]
        with Load(world.cluster, world.url, POOL, workers=3, streams=0) as load:
            started = time.monotonic()
            name = member["metadata"]["name"]
            world.cluster.kubectl("delete", f"pod/{name}", "--grace-period=0", "--force")
            world.until(lambda: not _is_ready(world, before.replica), "it is out of use", 60)
            row.note(f"out of use after {time.monotonic() - started:.1f} s")
            seconds = _until_serving(world, but=before.replica)
            row.note(f"a whole replica again after {seconds:.1f} s more")
            load.until(lambda tally, n=load.tally.answered: tally.answered > n, "an answer")
        row.note(str(load.tally))
        assert not load.tally.failed
        assert not load.tally.broken
        names = {pod["metadata"]["name"] for pod in _living(world)}
        assert name not in names


def test_nothing_is_left_when_a_spread_pool_is_deleted(world: World, stories: StoryTable) -> None:
    with stories.story("a pool over two pods is deleted under a stream") as row:
        with Load(world.cluster, world.url, POOL, workers=0, streams=2, stream_tokens=300) as load:
            started = time.monotonic()
            world.cluster.kubectl("delete", f"mp/{POOL}", "--wait=true")
            load.until(lambda tally: tally.streams >= 2, "the streams to end")
        row.note(f"{load.tally.streams} streams ended whole")
        assert not load.tally.broken
        world.until(
            lambda: not world.workers(POOL) and not world.heads(POOL) and not world.replicas(POOL),
            "nothing is left",
            240,
            lambda: world.shown(POOL),
        )
        row.note(f"nothing left after {time.monotonic() - started:.1f} s")


def _until_serving(world: World, *, but: str = "") -> float:
    """Until the pool is Ready with one replica of another name; seconds."""

    def holds() -> bool:
        ready = [name for name, each in world.replicas(POOL).items() if each.ready]
        return (
            len(ready) == 1
            and ready[0] != but
            and condition(world.pool(POOL), "Ready")[0] == "True"
        )

    return world.until(holds, "one replica serves", 300, lambda: world.shown(POOL))


def _is_ready(world: World, replica: str) -> bool:
    found = world.replicas(POOL).get(replica)
    return found is not None and found.ready


def _living(world: World) -> list[dict[str, Any]]:
    """The pool's worker pods that are not going."""
    return [pod for pod in world.workers(POOL) if not pod["metadata"].get("deletionTimestamp")]
