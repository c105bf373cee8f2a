from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pointsman_api.endpoint_slices import ReplicaEndpoint
from pointsman_operator.endpoints import EndpointsMemory, join_endpoints, plan_slices
from pointsman_operator.observed import PoolObserved
from pointsman_operator.ray_groups import with_groups
from tests.unit.operator.scenes import (
    NOW,
    external_pool,
    made_pool,
    ray_cluster,
    reading_of,
    running,
    selector_pool,
    serve_document,
    service_status,
    worker_pod,
)

POOL = made_pool()


def joined(observed: PoolObserved, memory: EndpointsMemory | None = None) -> Any:
    return join_endpoints(POOL, observed, memory or EndpointsMemory())


def states(endpoints: Any) -> dict[str, tuple[bool, bool, bool]]:
    return {e.replica: (e.ready, e.serving, e.terminating) for e in endpoints}


def two_clusters(*, active: str, pending: str = "") -> PoolObserved:
    observed, _ = running(POOL, replicas=1)
    assert observed.ray_service is not None
    return replace(
        observed,
        ray_service=service_status(observed.ray_service, active=active, pending=pending),
        ray_clusters=(ray_cluster("one"), ray_cluster("two")),
        pods=(worker_pod("a", "10.0.0.1"), worker_pod("b", "10.0.1.1", cluster="two")),
        serve={
            "one": reading_of(serve_document({"old": ("10.0.0.1", 30000)})),
            "two": reading_of(serve_document({"new": ("10.0.1.1", 30000)}), cluster="two"),
        },
    )


def test_a_replica_is_an_endpoint_with_its_pod() -> None:
    observed, _ = running(POOL, replicas=1)

    endpoints, _ = joined(observed)

    assert (
        ReplicaEndpoint(
            replica="replica0",
            host="10.0.0.1",
            port=30000,
            pod="pod-0",
            pod_namespace="team",
            pod_uid="uid-pod-0",
            node="node-1",
        ),
    ) == endpoints


def test_an_address_that_is_no_pods_of_the_cluster_is_no_endpoint() -> None:
    observed, _ = running(POOL, replicas=1)
    foreign = worker_pod("thief", "10.0.0.1", cluster="somebody-elses")

    assert () == joined(replace(observed, pods=(foreign,)))[0]


def test_the_heads_address_is_no_endpoint() -> None:
    observed, _ = running(POOL, replicas=1)
    head = worker_pod("head", "10.0.0.1")
    head["metadata"]["labels"]["ray.io/node-type"] = "head"

    assert () == joined(replace(observed, pods=(head,)))[0]


def test_serves_proxy_is_no_endpoint() -> None:
    observed, _ = running(POOL, replicas=1)
    document = serve_document({})
    document["target_groups"][0]["targets"] = [
        {"name": "SERVE_PROXY_ACTOR-1", "ip": "10.0.0.1", "port": 8000}
    ]

    assert () == joined(replace(observed, serve={"one": reading_of(document)}))[0]


def test_a_replica_serves_on_and_gets_no_more_when_its_pod_is_going() -> None:
    observed, _ = running(POOL, replicas=2)
    going = worker_pod("pod-0", "10.0.0.1", going=True)

    endpoints, _ = joined(replace(observed, pods=(going, observed.pods[1])))

    assert {"replica0": (False, True, True), "replica1": (True, True, False)} == states(endpoints)


def test_a_replica_does_not_serve_when_its_pod_is_not_ready() -> None:
    observed, _ = running(POOL, replicas=1)
    sick = worker_pod("pod-0", "10.0.0.1", ready=False)

    assert {"replica0": (False, False, False)} == states(joined(replace(observed, pods=(sick,)))[0])


def test_a_replica_that_ray_stops_gets_no_more() -> None:
    observed, _ = running(POOL, replicas=1, states={"replica0": "STOPPING"})

    assert {"replica0": (False, True, True)} == states(joined(observed)[0])


def test_a_pod_that_is_gone_takes_its_replica_with_it() -> None:
    observed, _ = running(POOL, replicas=2)

    assert ["replica1"] == list(states(joined(replace(observed, pods=observed.pods[1:]))[0]))


def test_the_last_list_stays_when_ray_lists_nothing_after_a_change() -> None:
    observed, _ = running(POOL, replicas=2)
    before, memory = joined(observed)
    silent = reading_of(serve_document({}, listed=False))

    after, memory = joined(replace(observed, serve={"one": silent}), memory)

    assert before == after
    assert before == joined(replace(observed, serve={"one": silent}), memory)[0]


def test_the_last_list_stays_when_ray_cannot_be_asked() -> None:
    observed, _ = running(POOL, replicas=2)
    before, memory = joined(observed)

    assert before == joined(replace(observed, serve={}), memory)[0]


def test_running_replicas_stay_when_ray_lists_its_proxy_alone() -> None:
    observed, _ = running(POOL, replicas=2)
    before, memory = joined(observed)
    document = serve_document({"replica0": ("10.0.0.1", 30000)})
    document["target_groups"][0]["targets"] = []

    after, _ = joined(replace(observed, serve={"one": reading_of(document)}), memory)

    assert before[:1] == after


def test_replicas_stay_when_a_head_that_came_back_finds_them_one_by_one() -> None:
    observed, _ = running(POOL, replicas=2)
    before, memory = joined(observed)
    addresses = {"replica0": ("10.0.0.1", 30000), "replica1": ("10.0.0.2", 30000)}
    recovering = {"replica0": "RECOVERING", "replica1": "RECOVERING"}
    one_found = serve_document(addresses, states={"replica1": "RECOVERING"})
    none_found = serve_document(addresses, states=recovering)
    none_known = serve_document({}, total=2)
    for document, targets in ((none_known, 0), (none_found, 0), (one_found, 1)):
        group = document["target_groups"][0]
        group["targets"] = group["targets"][:targets]

        after, memory = joined(replace(observed, serve={"one": reading_of(document)}), memory)

        assert before == after


def test_replicas_stay_when_a_head_that_came_back_knows_no_application_yet() -> None:
    observed, _ = running(POOL, replicas=2)
    before, memory = joined(observed)
    other = reading_of(serve_document({}, pool="other"))

    assert (before, memory) == joined(replace(observed, serve={"one": other}), memory)


def test_a_pod_that_has_ended_speaks_for_no_address() -> None:
    observed, _ = running(POOL, replicas=1)
    (pod,) = observed.pods
    ended = {
        "metadata": {**pod["metadata"], "name": "former", "uid": "former"},
        "status": {**pod["status"], "phase": "Failed", "conditions": []},
    }

    for pods in ((pod, ended), (ended, pod)):
        (endpoint,) = joined(replace(observed, pods=pods))[0]
        assert ("pod-0", True) == (endpoint.pod, endpoint.ready)


def spread_over(
    observed: PoolObserved, *pods: dict[str, Any]
) -> dict[str, tuple[bool, bool, bool]]:
    """The one replica, which Ray says has a second pod beside the first."""
    groups = {"replica0": ("10.0.0.1", "10.0.0.9")}
    serve = {"one": with_groups(observed.serve["one"], groups)}
    return states(joined(replace(observed, serve=serve, pods=(*observed.pods, *pods)))[0])


def test_a_replica_over_two_pods_is_one_endpoint_when_both_are_well() -> None:
    observed, _ = running(POOL, replicas=1)

    assert {"replica0": (True, True, False)} == spread_over(observed, worker_pod("m", "10.0.0.9"))


def test_a_replica_over_two_pods_gets_no_more_when_the_second_is_going() -> None:
    observed, _ = running(POOL, replicas=1)
    going = worker_pod("m", "10.0.0.9", going=True)

    assert {"replica0": (False, True, True)} == spread_over(observed, going)


def test_a_replica_over_two_pods_does_not_serve_when_the_second_is_not_ready_or_gone() -> None:
    observed, _ = running(POOL, replicas=1)
    sick = worker_pod("m", "10.0.0.9", ready=False)
    stranger = worker_pod("m", "10.0.0.9", cluster="two")

    for pods in ((sick,), (stranger,), ()):
        assert {"replica0": (False, False, False)} == spread_over(observed, *pods)


def test_a_replica_whose_pods_ray_has_not_named_goes_by_its_first() -> None:
    observed, _ = running(POOL, replicas=1)
    serve = {"one": with_groups(observed.serve["one"], {})}

    assert {"replica0": (True, True, False)} == states(joined(replace(observed, serve=serve))[0])


def test_the_list_of_a_cluster_is_forgotten_when_it_is_gone() -> None:
    observed, _ = running(POOL, replicas=2)
    _, memory = joined(observed)

    assert ((), EndpointsMemory()) == joined(replace(observed, ray_clusters=()), memory)


def test_a_replica_is_used_before_kuberay_calls_its_first_cluster_active() -> None:
    observed, _ = running(POOL, replicas=1)
    assert observed.ray_service is not None
    starting = service_status(observed.ray_service, pending="one")

    assert {"replica0": (True, True, False)} == states(
        joined(replace(observed, ray_service=starting))[0]
    )


def test_the_old_cluster_serves_until_the_new_one_is_active() -> None:
    before, _ = joined(two_clusters(active="one", pending="two"))
    after, _ = joined(two_clusters(active="two"))

    assert {"old": (True, True, False), "new": (False, True, False)} == states(before)
    assert {"old": (False, True, False), "new": (True, True, False)} == states(after)


def test_the_new_cluster_serves_early_when_the_old_one_has_no_replica_left() -> None:
    observed = two_clusters(active="one", pending="two")
    sick = worker_pod("a", "10.0.0.1", ready=False)

    endpoints, _ = joined(replace(observed, pods=(sick, observed.pods[1])))

    assert {"old": (False, False, False), "new": (True, True, False)} == states(endpoints)


def test_no_replica_gets_requests_once_the_ray_service_is_gone() -> None:
    observed, _ = running(POOL, replicas=1)

    assert {"replica0": (False, True, False)} == states(
        joined(replace(observed, ray_service=None))[0]
    )


def test_selected_pods_are_endpoints_by_themselves() -> None:
    observed = PoolObserved(
        now=NOW,
        pods=(
            worker_pod("vllm-0", "10.0.0.1"),
            worker_pod("vllm-1", "10.0.0.2", going=True),
            worker_pod("vllm-2", "", ready=False),
        ),
    )

    endpoints, _ = join_endpoints(selector_pool(), observed, EndpointsMemory())

    assert {"vllm-0": (True, True, False), "vllm-1": (False, True, True)} == states(endpoints)
    assert {8000} == {endpoint.port for endpoint in endpoints}


def test_a_restarted_container_is_a_new_replica() -> None:
    pod = worker_pod(
        "vllm-0", "10.0.0.1", status={"containerStatuses": [{"name": "x", "restartCount": 2}]}
    )

    endpoints, _ = join_endpoints(
        selector_pool(), PoolObserved(now=NOW, pods=(pod,)), EndpointsMemory()
    )

    assert "vllm-0-2" == endpoints[0].replica


def test_an_external_pool_has_no_endpoints() -> None:
    assert () == join_endpoints(external_pool(), PoolObserved(now=NOW), EndpointsMemory())[0]


def endpoint(number: int, *, port: int = 30000, ready: bool = True) -> ReplicaEndpoint:
    return ReplicaEndpoint(replica=f"r{number}", host=f"10.0.0.{number}", port=port, ready=ready)


def sliced(endpoints: Any, existing: Any = ()) -> Any:
    return plan_slices(POOL, endpoints, existing, namespace="system")


def test_slices_lie_in_the_gateways_namespace_and_name_their_pool() -> None:
    (item,) = sliced([endpoint(1)]).apply

    assert "system" == item["metadata"]["namespace"]
    assert ("chat", "team") == (
        item["metadata"]["labels"]["pointsman.dev/pool"],
        item["metadata"]["labels"]["pointsman.dev/pool-namespace"],
    )
    assert "ownerReferences" not in item["metadata"]


def test_slices_are_owned_when_there_is_an_owner() -> None:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "operator", "uid": "1"}
    (bare,) = sliced([endpoint(1)]).apply

    (item,) = plan_slices(POOL, [endpoint(1)], [bare], namespace="system", owner=owner).apply

    assert [owner] == item["metadata"]["ownerReferences"]
    assert () == plan_slices(POOL, [endpoint(1)], [item], namespace="system", owner=owner).apply


def test_nothing_is_written_when_no_replica_changed() -> None:
    endpoints = [endpoint(1), endpoint(2, port=30001)]
    first = sliced(endpoints)

    again = sliced(endpoints, first.apply)

    assert ((), ()) == (again.apply, again.delete)


def test_a_pool_of_selected_pods_has_a_slice_when_it_selects_none() -> None:
    pool = selector_pool()
    (item,) = plan_slices(pool, [], [], namespace="system").apply

    assert ([], 8000) == (item["endpoints"], item["ports"][0]["port"])
    again = plan_slices(pool, [], [item], namespace="system")
    assert ((), ()) == (again.apply, again.delete)
    assert () == sliced([]).apply


def test_a_slice_goes_with_its_last_replica() -> None:
    first = sliced([endpoint(1), endpoint(2, port=30001)])

    after = sliced([endpoint(1)], first.apply)

    assert () == after.apply
    assert [first.apply[1]["metadata"]["name"]] == [ref.name for ref in after.delete]


def test_one_slice_is_written_when_one_replica_of_many_is_no_longer_ready() -> None:
    many = [endpoint(number) for number in range(1, 250)]
    first = sliced(many).apply
    many[7] = endpoint(8, ready=False)

    assert 3 == len(first)
    assert 1 == len(sliced(many, first).apply)


@given(
    before=st.sets(st.integers(1, 40), max_size=30),
    after=st.sets(st.integers(1, 40), max_size=30),
)
def test_a_replica_that_stays_keeps_its_slice(before: set[int], after: set[int]) -> None:
    def place(slices: Any) -> dict[str, str]:
        return {
            item["hostname"]: each["metadata"]["name"]
            for each in slices
            for item in each["endpoints"]
        }

    first = sliced([endpoint(n, port=30000 + n % 2) for n in before]).apply
    plan = sliced([endpoint(n, port=30000 + n % 2) for n in after], first)
    gone = {ref.name for ref in plan.delete}
    changed = {item["metadata"]["name"]: item for item in plan.apply}
    now = {item["metadata"]["name"]: item for item in first if item["metadata"]["name"] not in gone}
    old, new = place(first), place((now | changed).values())

    assert {f"r{n}" for n in after} == set(new)
    assert all(old[name] == new[name] for name in old.keys() & new.keys())


@given(order=st.permutations(range(5)))
def test_the_order_of_pods_and_targets_makes_no_difference(order: list[int]) -> None:
    observed, _ = running(POOL, replicas=5)
    reading = observed.serve["one"]
    assert reading.status is not None
    shuffled = replace(
        observed,
        pods=tuple(observed.pods[n] for n in order),
        serve={
            "one": replace(
                reading,
                status=replace(
                    reading.status, targets=tuple(reading.status.targets[n] for n in order)
                ),
            )
        },
    )

    assert joined(observed)[0] == joined(shuffled)[0]
