"""Who may speak with whom, where NetworkPolicies are enforced."""

from __future__ import annotations

from typing import Any

from tests.chart.chart import Object, container, one, pod_template, render, selects
from tests.chart.value_sets import PRODUCTION

EVERYWHERE: dict[str, Any] = {}
"""What a policy's rule without peers, or a namespaceSelector that is empty, means."""


def named_ports(objects: list[Object], component: str) -> dict[str, int]:
    workload = one(objects, "StatefulSet" if component == "redis" else "Deployment", component)
    return {each["name"]: each["containerPort"] for each in container(workload)["ports"]}


def rules(objects: list[Object], component: str, direction: str) -> list[Object]:
    policy = one(objects, "NetworkPolicy", component)["spec"]
    assert ["Ingress", "Egress"] == policy["policyTypes"]
    found: list[Object] = policy[direction]
    return found


def peers(objects: list[Object], component: str, port: str) -> list[Object] | None:
    """Who may come in on a port; None for everybody."""
    (rule,) = [
        each
        for each in rules(objects, component, "ingress")
        if port in [entry["port"] for entry in each["ports"]]
    ]
    return rule.get("from")


def labels_of(objects: list[Object], component: str) -> dict[str, str]:
    labels: dict[str, str] = pod_template(one(objects, "Deployment", component))["metadata"][
        "labels"
    ]
    return labels


def test_clients_reach_the_gateway_from_everywhere_by_default() -> None:
    assert peers(render(), "gateway", "http") is None


def test_only_named_clients_and_the_test_reach_the_gateway_when_some_are_named() -> None:
    objects = render(PRODUCTION)
    named, test = peers(objects, "gateway", "http") or []
    assert {"namespaceSelector": {"matchLabels": {"llm": "client"}}} == named
    pod = one(objects, "Pod", "test")["metadata"]["labels"]
    assert selects(test["podSelector"]["matchLabels"], pod)


def test_only_the_operator_reaches_the_admin_port_by_default() -> None:
    objects = render()
    (peer,) = peers(objects, "gateway", "admin") or []
    assert {"podSelector"} == set(peer)
    selector = peer["podSelector"]["matchLabels"]
    assert selects(selector, labels_of(objects, "operator"))
    assert not selects(selector, labels_of(objects, "gateway"))


def test_the_operator_of_another_release_reaches_a_second_gateway() -> None:
    second = render({"operator": {"enabled": False}}, release="internal")
    (peer,) = peers(second, "gateway", "admin") or []
    assert selects(peer["podSelector"]["matchLabels"], labels_of(render(), "operator"))


def test_the_monitoring_namespace_reaches_the_admin_ports_when_it_is_named() -> None:
    objects = render(PRODUCTION)
    monitoring = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    }
    for component in ("operator", "gateway"):
        assert monitoring in (peers(objects, component, "admin") or [])


def test_nobody_reaches_the_operator_by_default() -> None:
    assert [] == rules(render(), "operator", "ingress")


def test_the_gateway_reaches_replicas_on_every_port_in_every_namespace() -> None:
    replicas = {
        "to": [
            {
                "namespaceSelector": EVERYWHERE,
                "podSelector": {
                    "matchExpressions": [{"key": "pointsman.dev/pool", "operator": "Exists"}]
                },
            }
        ]
    }
    assert replicas in rules(render(), "gateway", "egress")


def test_the_operator_reaches_ray_heads_and_the_gateways_status() -> None:
    objects = render()
    assert [8265, named_ports(objects, "gateway")["admin"]] == [
        rule["ports"][0]["port"]
        for rule in rules(objects, "operator", "egress")
        if "podSelector" in str(rule)
    ]
    assert "pointsman.dev/gateway" in labels_of(objects, "gateway")


def test_both_reach_names_and_the_api_server() -> None:
    for component in ("operator", "gateway"):
        names, server = rules(render(), component, "egress")[:2]
        assert {("UDP", 53), ("TCP", 53)} == {
            (each["protocol"], each["port"]) for each in names["ports"]
        }
        assert {443, 6443} == {each["port"] for each in server["ports"]}
        assert "to" not in server


def test_the_api_server_is_the_only_address_when_it_is_named() -> None:
    server = rules(render(PRODUCTION), "operator", "egress")[1]
    assert [{"ipBlock": {"cidr": "10.0.0.1/32"}}] == server["to"]


def test_the_gateway_reaches_no_provider_when_none_is_allowed() -> None:
    objects = render({"networkPolicy": {"externalPools": {"cidrs": []}}})
    assert "ipBlock" not in str(rules(objects, "gateway", "egress"))


def test_only_pods_of_pools_reach_redis_and_redis_reaches_nobody() -> None:
    objects = render({"redis": {"enabled": True}})
    (peer,) = peers(objects, "redis", "redis") or []
    assert "pointsman.dev/pool" == peer["podSelector"]["matchExpressions"][0]["key"]
    assert [] == rules(objects, "redis", "egress")


def test_there_are_no_policies_when_they_are_switched_off() -> None:
    objects = render({"networkPolicy": {"enabled": False}, "redis": {"enabled": True}})
    assert [] == [each for each in objects if each["kind"] == "NetworkPolicy"]
