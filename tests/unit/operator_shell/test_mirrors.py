"""Whose an object is."""

from __future__ import annotations

from typing import Any

from pointsman_operator.mirrors import pools_of, pools_served_from_here


def labelled(namespace: str) -> dict[str, Any]:
    labels = {"pointsman.dev/pool": "chat", "pointsman.dev/pool-namespace": "team"}
    return {"metadata": {"name": "x", "namespace": namespace, "labels": labels}}


def test_a_pod_is_its_own_namespaces_whatever_its_labels_claim() -> None:
    assert [("team", "chat")] == list(pools_of(labelled("team")))
    assert [("evil", "chat")] == list(pools_of(labelled("evil")))


def test_a_slice_is_for_the_pool_that_its_labels_name() -> None:
    assert [("team", "chat")] == list(pools_served_from_here(labelled("pointsman-system")))
