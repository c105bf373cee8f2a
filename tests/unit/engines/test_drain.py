"""What holds back the end of a pod, and for how long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from pointsman_serving.engines.drain import (
    other_nodes,
    ray_token,
    wait_for_requests,
    wait_for_workers,
)
from pointsman_serving.engines.open_requests import OpenRequests


@dataclass
class Clock:
    """Time that passes by sleeping, and things that happen in it."""

    now: float = 0.0
    plan: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.plan and self.plan[0][0] <= self.now:
            self.plan.pop(0)[1]()


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[OpenRequests]:
    found = OpenRequests(tmp_path / "open")
    yield found
    found.close()


def drained_at(tmp_path: Path, clock: Clock, *, timeout: float = 60.0) -> tuple[float, str]:
    left = wait_for_requests(
        tmp_path / "open", settle_seconds=5.0, until=timeout, clock=clock, sleep=clock.sleep
    )
    return clock.now, left


def test_pod_ends_after_the_gateways_noticed_when_nothing_is_open(tmp_path: Path) -> None:
    assert (5.5, "") == drained_at(tmp_path, Clock())


def test_pod_waits_for_the_last_request_when_some_are_open(
    tmp_path: Path, requests: OpenRequests
) -> None:
    requests.began()
    clock = Clock(plan=[(20.0, requests.began), (30.0, requests.ended), (40.0, requests.ended)])
    assert (40.5, "") == drained_at(tmp_path, clock)


def test_pod_waits_on_when_it_was_quiet_for_a_moment_only(
    tmp_path: Path, requests: OpenRequests
) -> None:
    clock = Clock(plan=[(5.2, requests.began), (12.0, requests.ended)])
    assert (12.5, "") == drained_at(tmp_path, clock)


def test_pod_ends_in_time_when_requests_do_not(tmp_path: Path, requests: OpenRequests) -> None:
    requests.began()
    ended_at, left = drained_at(tmp_path, Clock(), timeout=30.2)
    assert 30.2 == ended_at
    assert "time is over, with open requests in 1 replicas" in left


def test_pod_waits_no_longer_than_the_time_limit_when_settling_takes_longer(
    tmp_path: Path,
) -> None:
    assert (2.0, "") == drained_at(tmp_path, Clock(), timeout=2.0)


def test_head_waits_until_it_is_alone_when_workers_drain() -> None:
    clock = Clock()
    counts = iter([2, 2, 1, 0])
    left = wait_for_workers(lambda: next(counts), until=60.0, clock=clock, sleep=clock.sleep)
    assert ("", 1.5) == (left, clock.now)


def test_head_gives_up_soon_when_its_dashboard_is_dead() -> None:
    clock = Clock()

    def dead() -> int:
        raise ConnectionRefusedError("refused")

    left = wait_for_workers(dead, until=600.0, clock=clock, sleep=clock.sleep)
    assert "refused" in left
    assert 15.0 == clock.now


def test_head_waits_on_when_its_dashboard_does_not_answer_for_a_moment() -> None:
    clock = Clock()

    def nodes() -> int:
        if 3.0 < clock.now % 20.0 < 17.0:
            raise TimeoutError("slow")
        return 1

    left = wait_for_workers(nodes, until=40.0, clock=clock, sleep=clock.sleep)
    assert ("the time is over, with 1 other nodes", 40.0) == (left, clock.now)


class Dashboard(BaseHTTPRequestHandler):
    """Ray's list of nodes, for those that have the token."""

    nodes: ClassVar[list[tuple[str, bool]]] = []

    def do_GET(self) -> None:
        assert "/nodes?view=summary&nocache=1" == self.path
        allowed = self.headers["authorization"] == "Bearer t0ken"
        summary = [{"raylet": {"state": state, "isHeadNode": head}} for state, head in self.nodes]
        body = json.dumps({"result": True, "data": {"summary": summary}}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[tuple[str, int]]:
    server = HTTPServer(("127.0.0.1", 0), Dashboard)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield "127.0.0.1", server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_other_nodes_are_those_alive_beside_the_head(dashboard: tuple[str, int]) -> None:
    Dashboard.nodes = [("ALIVE", True), ("ALIVE", False), ("DEAD", False), ("ALIVE", False)]
    assert 2 == other_nodes({"RAY_AUTH_TOKEN": "t0ken"}, address=dashboard)


@pytest.mark.parametrize("nodes", [[], [("DEAD", True)], [("ALIVE", False)]])
def test_nobody_can_tell_the_nodes_when_the_dashboard_has_just_started(
    dashboard: tuple[str, int], nodes: list[tuple[str, bool]]
) -> None:
    Dashboard.nodes = nodes
    with pytest.raises(ValueError, match="the head itself"):
        other_nodes({"RAY_AUTH_TOKEN": "t0ken"}, address=dashboard)


def test_nobody_can_tell_the_nodes_when_the_token_is_wrong(dashboard: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match="401"):
        other_nodes({"RAY_AUTH_TOKEN": "other"}, address=dashboard)


def test_token_is_read_from_where_ray_reads_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("by-file\n")
    path = str(tmp_path / "token")
    assert "by-file" == ray_token({"RAY_AUTH_TOKEN_PATH": path})
    assert "by-name" == ray_token({"RAY_AUTH_TOKEN": "by-name", "RAY_AUTH_TOKEN_PATH": path})
    assert "" == ray_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})


def test_hook_ends_well_when_it_runs_as_the_kubelet_runs_it(
    tmp_path: Path, requests: OpenRequests
) -> None:
    requests.began()
    command = [sys.executable, "-m", "pointsman_serving.engines.drain", "--timeout", "60"]
    hook = subprocess.Popen(
        [*command, "--settle", "0.1"],
        env=os.environ | {"POINTSMAN_RUN_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.0)
    assert hook.poll() is None
    requests.ended()
    output, _ = hook.communicate(timeout=20)
    assert (0, "drained\n") == (hook.returncode, output)


def test_hook_imports_nothing_slow_when_it_starts() -> None:
    program = "import sys, pointsman_serving.engines.drain; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set() == {"ray", "starlette", "pydantic", "http.client", "json", "ssl"} & {*loaded}
