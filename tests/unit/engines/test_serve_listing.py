"""What Ray Serve says of its applications."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman_serving.engines.serve_listing import PoolState, read_serve_listing


def details(
    status: str = "RUNNING",
    *,
    replicas: dict[str, str] | None = None,
    reachable: tuple[str, ...] = (),
    wanted: int = 2,
    built: bool = True,
    message: str = "",
    deployment_message: str = "",
    dead: tuple[str, ...] = (),
) -> dict[str, Any]:
    """An answer of ``GET /api/serve/applications/`` with one application."""
    entries = [
        {
            "replica_id": replica,
            "state": state,
            "pid": 100 + number,
            "log_file_path": f"/serve/replica_chat_engine_{replica}.log",
        }
        for number, (replica, state) in enumerate((replicas or {}).items())
    ]
    deployment = {
        "status": "HEALTHY",
        "message": deployment_message,
        "target_num_replicas": wanted,
        "replicas": entries,
        "recent_dead_replicas": [{"replica_id": each, "state": "STOPPING"} for each in dead],
    }
    targets = [
        {"ip": "127.0.0.1", "port": 30000 + number, "name": f"SERVE_REPLICA::chat#engine#{replica}"}
        for number, replica in enumerate(reachable)
    ]
    proxy = {"ip": "127.0.0.1", "port": 8000, "name": "SERVE_PROXY_ACTOR-aa"}
    return {
        "applications": {
            "chat": {
                "name": "chat",
                "route_prefix": "/chat",
                "status": status,
                "message": message,
                "deployments": {"engine": deployment} if built else {},
                "deployed_app_config": {"deployments": [{"num_replicas": wanted}]},
            }
        },
        "target_groups": [
            {"app_name": "chat", "protocol": "HTTP", "targets": targets or [proxy]},
            {"app_name": "chat", "protocol": "gRPC", "targets": [proxy]},
        ],
    }


def test_pool_is_ready_when_every_replica_can_be_reached() -> None:
    answer = details(replicas={"a": "RUNNING", "b": "RUNNING"}, reachable=("a", "b"))
    chat = read_serve_listing(answer)["chat"]
    assert (PoolState.READY, 2, 2, "/chat") == (chat.state, chat.ready, chat.total, chat.base_path)
    assert [("127.0.0.1", 30000), ("127.0.0.1", 30001)] == [(r.host, r.port) for r in chat.replicas]
    assert "serve/replica_chat_engine_a.log" == chat.replicas[0].log_file


def test_pool_is_starting_when_a_running_replica_is_no_target_yet() -> None:
    answer = details(replicas={"a": "RUNNING", "b": "RUNNING"}, reachable=("a",))
    chat = read_serve_listing(answer)["chat"]
    assert (PoolState.STARTING, 1, 2) == (chat.state, chat.ready, chat.total)


def test_proxy_counts_as_no_replica_when_it_is_the_only_target() -> None:
    chat = read_serve_listing(details("DEPLOYING", replicas={"a": "STARTING"}))["chat"]
    assert (PoolState.STARTING, 0, 2) == (chat.state, chat.ready, chat.total)


def test_wanted_replicas_come_from_the_configuration_when_serve_is_building() -> None:
    chat = read_serve_listing(details("DEPLOYING", built=False, wanted=3))["chat"]
    assert (PoolState.STARTING, 0, 3) == (chat.state, chat.ready, chat.total)


def test_slow_start_is_no_message_when_an_engine_loads() -> None:
    slow = "Deployment 'engine' has 1 replicas that have taken more than 30s to initialize."
    chat = read_serve_listing(details("DEPLOYING", deployment_message=slow))["chat"]
    assert "" == chat.message


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("NOT_STARTED", PoolState.STARTING),
        ("UNHEALTHY", PoolState.UNHEALTHY),
        ("DEPLOY_FAILED", PoolState.FAILED),
        ("DELETING", PoolState.STOPPING),
        ("SOMETHING_NEW", PoolState.STARTING),
    ],
)
def test_state_is_one_word_when_serve_has_many(status: str, state: PoolState) -> None:
    answer = details(status, message="why", deployment_message="why")
    chat = read_serve_listing(answer)["chat"]
    assert (state, "why") == (chat.state, chat.message)


def test_dead_replicas_are_apart_when_there_are_some() -> None:
    chat = read_serve_listing(details(replicas={"a": "RUNNING"}, reachable=("a",), dead=("z",)))[
        "chat"
    ]
    assert (["a"], ["z"]) == ([r.replica for r in chat.replicas], [r.replica for r in chat.dead])


def test_nothing_is_said_when_nothing_is_deployed() -> None:
    assert {} == read_serve_listing({"applications": {}, "target_groups": []})


def test_nothing_is_said_when_ray_has_just_started() -> None:
    answer = {"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}
    assert {} == read_serve_listing(answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "the list of applications is list; it must be an object"),
        ({"target_groups": []}, "applications is NoneType"),
        ({"applications": {"chat": 1}, "target_groups": []}, "chat is int"),
        ({"applications": {}, "target_groups": {"a": 1}}, "target_groups is dict"),
    ],
)
def test_answer_is_refused_when_it_has_another_shape(answer: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_serve_listing(answer)
