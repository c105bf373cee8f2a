from __future__ import annotations

from typing import Any

import pytest

from pointsman_operator.ray_groups import groups_of, read_groups, spreads, with_groups
from tests.unit.operator.scenes import reading_of, serve_document


def answer(*entries: dict[str, Any]) -> dict[str, Any]:
    """An answer of Ray's state API, in its shape."""
    return {
        "result": True,
        "msg": "",
        "data": {"result": {"total": len(entries), "result": entries}},
    }


def group(name: str, *nodes: str | None, state: str = "CREATED") -> dict[str, Any]:
    bundles = [{"bundle_id": {"bundle_index": n}, "node_id": node} for n, node in enumerate(nodes)]
    return {"placement_group_id": f"id-{name}", "name": name, "state": state, "bundles": bundles}


NODES = answer(
    {"node_id": "aa", "node_ip": "10.0.0.1", "state": "ALIVE"},
    {"node_id": "bb", "node_ip": "10.0.0.2", "state": "ALIVE"},
    {"node_id": "dd", "node_ip": "10.0.0.4", "state": "DEAD"},
)


def test_a_replica_has_the_addresses_of_its_placement_group() -> None:
    groups = answer(group("SERVE_REPLICA::chat#engine#r0", "aa", "bb"))

    assert {"r0": ("10.0.0.1", "10.0.0.2")} == read_groups(groups, NODES, application="chat")


@pytest.mark.parametrize("node", ["dd", "", None, "unknown"])
def test_a_host_that_is_lost_has_no_address(node: str | None) -> None:
    groups = answer(group("SERVE_REPLICA::chat#engine#r0", "aa", node, state="RESCHEDULING"))

    assert {"r0": ("10.0.0.1", "")} == read_groups(groups, NODES, application="chat")


def test_other_placement_groups_are_passed_over() -> None:
    groups = answer(
        group("SERVE_REPLICA::chat#engine#old", "aa", state="REMOVED"),
        group("SERVE_REPLICA::chat#engine#new", None, None, state="PENDING"),
        group("SERVE_REPLICA::chatter#engine#r0", "aa"),
        group("a training job", "bb"),
    )

    assert {} == read_groups(groups, NODES, application="chat")


@pytest.mark.parametrize("wrong", [None, {}, {"data": {"result": None}}, answer({"name": "x"})])
def test_an_answer_of_another_shape_is_an_error(wrong: object) -> None:
    with pytest.raises(ValueError, match="has another shape"):
        read_groups(wrong, NODES, application="chat")


def test_only_replicas_with_several_bundles_are_asked_about() -> None:
    document = serve_document({"r0": ("10.0.0.1", 30000)})
    assert not spreads(document, "chat")
    deployments = document["applications"]["chat"]["deployed_app_config"]["deployments"]
    deployments[0]["placement_group_bundles"] = [{"CPU": 1}]
    assert not spreads(document, "chat")
    deployments[0]["placement_group_bundles"] = [{"CPU": 1}, {"CPU": 1}]
    assert spreads(document, "chat")
    assert not spreads(document, "other")


def test_a_reading_keeps_what_it_says_when_groups_are_added() -> None:
    plain = reading_of(serve_document({"r0": ("10.0.0.1", 30000)}))
    grouped = with_groups(plain, {"r0": ("10.0.0.1",)})

    assert plain.status == grouped.status
    assert {"r0": ("10.0.0.1",)} == groups_of(grouped)
    assert {} == groups_of(plain) == groups_of(None)
