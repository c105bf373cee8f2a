from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from pointsman_operator.access import STAMP_ANNOTATION, has_outdated_pods
from pointsman_operator.observed import PoolObserved
from tests.unit.operator.scenes import NOW, made_pool, planned, running, with_applied, worker_pod

POOL = made_pool()


def values(secret: Any) -> dict[str, bytes]:
    return {name: base64.b64decode(text) for name, text in secret["data"].items()}


def lost(*, known: bool) -> PoolObserved:
    """A running pool whose Secret somebody has deleted."""
    observed, _ = running(POOL)
    secret = {
        **(observed.access_secret or {}),
        "data": {"auth_token": "YQ==", "replica_token": "Yg=="},
    }
    return replace(observed, access_secret=None, lost_access=secret if known else None)


def test_the_same_values_are_put_back_when_they_are_still_known() -> None:
    plan = planned(POOL, lost(known=True))

    (secret,) = plan.create
    assert {"auth_token": b"a", "replica_token": b"b"} == values(secret)
    assert STAMP_ANNOTATION not in secret["metadata"].get("annotations", {})
    # Nothing of what runs has to change.
    assert () == plan.apply


def test_a_part_that_was_taken_out_is_put_back_when_it_is_still_known() -> None:
    observed = lost(known=True)
    assert observed.lost_access is not None
    left = {**observed.lost_access, "data": {"auth_token": "YQ=="}}

    plan = planned(POOL, replace(observed, access_secret=left))

    assert {"auth_token": b"a", "replica_token": b"b"} == values(plan.apply[0])
    assert ["Secret"] == [item["kind"] for item in plan.apply]


def test_the_pods_are_replaced_when_the_values_are_lost_for_good() -> None:
    observed = lost(known=False)

    first = planned(POOL, observed)
    made = with_applied(observed, first)
    second = planned(POOL, made)
    done = with_applied(made, second)

    # What runs is left alone until the Secret is really there.
    assert () == first.apply
    stamp = first.create[0]["metadata"]["annotations"][STAMP_ANNOTATION]
    assert str(int(NOW)) == stamp
    (service,) = second.apply
    config = service["spec"]["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        assert stamp == group["template"]["metadata"]["annotations"][STAMP_ANNOTATION]
    assert planned(POOL, replace(done, now=NOW + 900)).is_empty


def test_pods_are_outdated_until_they_carry_the_secrets_stamp() -> None:
    observed = with_applied(lost(known=False), planned(POOL, lost(known=False)))
    stamp = (observed.access_secret or {})["metadata"]["annotations"][STAMP_ANNOTATION]
    new = worker_pod("new", "10.0.0.9")
    new["metadata"]["annotations"] = {STAMP_ANNOTATION: stamp}

    assert has_outdated_pods(observed)
    assert not has_outdated_pods(replace(observed, pods=(new,)))
    assert not has_outdated_pods(running(POOL)[0])


def test_no_pod_has_to_go_when_none_runs() -> None:
    plan = planned(POOL)

    assert "annotations" not in plan.create[0]["metadata"]
    again = planned(POOL, replace(with_applied(PoolObserved(now=NOW), plan), access_secret=None))
    assert "annotations" not in again.create[0]["metadata"]


def test_the_stamp_of_what_runs_stays_when_a_stamped_secret_is_lost_again() -> None:
    observed = lost(known=False)
    for _ in range(2):
        observed = with_applied(observed, planned(POOL, observed))

    plan = planned(POOL, replace(observed, access_secret=None, now=NOW + 60))

    # Not before the new Secret is there.
    assert () == plan.apply
    assert str(int(NOW) + 60) == plan.create[0]["metadata"]["annotations"][STAMP_ANNOTATION]
