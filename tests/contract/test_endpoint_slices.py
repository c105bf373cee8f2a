"""Replicas as EndpointSlices, there and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_api.endpoint_slices import (
    PoolEndpoints,
    ReplicaEndpoint,
    decode_slices,
    encode_slices,
    pod_replica,
)


def replica(name: str, port: int = 30000, **fields: Any) -> ReplicaEndpoint:
    return ReplicaEndpoint(replica=name, host="10.1.0.7", port=port, **fields)


def pool_of(*endpoints: ReplicaEndpoint, pool: str = "qwen") -> PoolEndpoints:
    return PoolEndpoints(namespace="team", pool=pool, prefix=f"/{pool}", endpoints=endpoints)


def names(slices: tuple[dict[str, Any], ...]) -> dict[str, list[str]]:
    return {
        item["metadata"]["name"]: [each["hostname"] for each in item["endpoints"]]
        for item in slices
    }


replicas = st.lists(
    st.builds(
        ReplicaEndpoint,
        replica=st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
        host=st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]),
        port=st.sampled_from([30000, 30001, 8000]),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        pod=st.sampled_from(["", "pod-1"]),
        node=st.sampled_from(["", "node-1"]),
    ),
    unique_by=lambda item: item.replica,
    max_size=12,
)


@given(replicas)
def test_replicas_are_the_same_when_they_went_through_slices(found: list[ReplicaEndpoint]) -> None:
    pool = pool_of(*sorted(found, key=lambda item: item.replica))
    slices = encode_slices(pool, namespace="system", max_endpoints=3)
    assert ({"team/qwen": pool} if found else {}) == decode_slices(slices)
    assert all(len(item["endpoints"]) <= 3 for item in slices)


@given(replicas, replicas)
def test_replica_keeps_its_place_when_others_come_and_go(
    before: list[ReplicaEndpoint], more: list[ReplicaEndpoint]
) -> None:
    old = encode_slices(pool_of(*before), namespace="system", max_endpoints=3)
    known = {item.replica for item in before}
    kept = before[::2]
    after = pool_of(*kept, *(item for item in more if item.replica not in known))
    new = encode_slices(after, namespace="system", existing=old, max_endpoints=3)
    places_before = {each: name for name, group in names(old).items() for each in group}
    places_after = {each: name for name, group in names(new).items() for each in group}
    assert all(places_before[item.replica] == places_after[item.replica] for item in kept)
    assert new == encode_slices(after, namespace="system", existing=new, max_endpoints=3)


def test_one_slice_without_endpoints_stays_when_the_last_replica_goes() -> None:
    old = encode_slices(pool_of(replica("a"), replica("b", 30001)), namespace="system")
    (emptied,) = encode_slices(pool_of(), namespace="system", existing=old)

    assert ("IPv4", []) == (emptied["addressType"], emptied["endpoints"])
    assert emptied["metadata"]["name"] in names(old)
    assert (emptied,) == encode_slices(pool_of(), namespace="system", existing=(emptied,))
    assert () == encode_slices(pool_of(), namespace="system")


def test_slice_without_endpoints_is_made_when_one_is_asked_for_and_there_is_none() -> None:
    (made,) = encode_slices(pool_of(), namespace="system", labels={"x": "y"}, empty_port=8000)

    assert {"team/qwen": pool_of()} == decode_slices([made])
    assert "y" == made["metadata"]["labels"]["x"]
    assert ("IPv4", []) == (made["addressType"], made["endpoints"])
    assert [{"name": "http", "port": 8000, "protocol": "TCP"}] == made["ports"]
    # It is the place of the first replica that comes, and stays when that goes.
    filled = encode_slices(pool_of(replica("a", 8000)), namespace="system", existing=(made,))
    assert [made["metadata"]["name"]] == list(names(filled))
    (emptied,) = encode_slices(pool_of(), namespace="system", existing=filled, empty_port=9000)
    assert made["ports"] == emptied["ports"]


def test_slice_lies_in_the_gateways_namespace_when_the_pool_is_elsewhere() -> None:
    (found,) = encode_slices(pool_of(replica("a")), namespace="system", labels={"x": "y"})
    assert "system" == found["metadata"]["namespace"]
    assert {
        "x": "y",
        "endpointslice.kubernetes.io/managed-by": "pointsman-operator",
        "pointsman.dev/pool": "qwen",
        "pointsman.dev/pool-namespace": "team",
    } == found["metadata"]["labels"]


def test_slices_differ_in_name_when_pools_of_two_namespaces_share_theirs() -> None:
    here = pool_of(replica("a"))
    there = replace(here, namespace="other")
    slices = [encode_slices(pool, namespace="system")[0] for pool in (here, there)]
    assert 2 == len({item["metadata"]["name"] for item in slices})


def test_replica_is_not_ready_when_one_of_two_slices_says_so() -> None:
    (ready,) = encode_slices(pool_of(replica("a")), namespace="system")
    (going,) = encode_slices(pool_of(replica("a", ready=False)), namespace="system")
    going["metadata"]["name"] += "-other"
    for order in ([ready, going], [going, ready]):
        assert [False] == [item.ready for item in decode_slices(order)["team/qwen"].endpoints]


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": {}},
        {
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "pointsman.dev/pool": "qwen",
                "pointsman.dev/pool-namespace": "team",
            }
        },
    ],
)
def test_slice_is_passed_over_when_it_is_not_ours(changed: dict[str, Any]) -> None:
    (found,) = encode_slices(pool_of(replica("a")), namespace="system")
    found["metadata"] = {**found["metadata"], **changed}
    assert {} == decode_slices([found])


def test_condition_counts_as_ready_when_the_slice_does_not_say() -> None:
    (found,) = encode_slices(pool_of(replica("a", ready=False)), namespace="system")
    found["endpoints"][0]["conditions"] = {}
    (endpoint,) = decode_slices([found])["team/qwen"].endpoints
    assert (True, True, False) == (endpoint.ready, endpoint.serving, endpoint.terminating)


@pytest.mark.parametrize(
    ("pod", "restarts", "expected"),
    [("vllm-0", 0, "vllm-0"), ("vllm-0", 2, "vllm-0-2"), ("a.b", 1, "u-1"), ("v" * 64, 0, "u")],
)
def test_replica_is_named_after_its_pod_when_that_is_a_label(
    pod: str, restarts: int, expected: str
) -> None:
    assert expected == pod_replica(pod, "u", restarts)
