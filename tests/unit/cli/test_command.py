"""The command as a process: what it says, and its exit code."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

QUICKSTART = Path("examples/quickstart")
EXPLANATION = {
    "outcome": "Chosen",
    "reason": "sim/one scores best of 2.",
    "policy": "assistant",
    "rule": "default",
    "winner": {"pool": "sim", "replica": "one"},
    "candidates": [
        {
            "pool": "sim",
            "replica": replica,
            "quality": 0.5,
            "predicted_ttft_seconds": 0.1,
            "predicted_latency_seconds": 1.5,
            "predicted_cached_tokens": 12,
            "predicted_cost_dollars": 0.00001,
            "in_flight": 0,
            "score": 0.49,
            "rejected": rejected,
        }
        for replica, rejected in (("one", None), ("two", "Full"))
    ],
}


def pointsman(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pointsman_serving.cli.main", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
    )


@pytest.fixture
def gateway() -> Iterator[str]:
    """An address that explains every request in the same way, and knows one model."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            known = body["model"] == "assistant"
            error = {"error": {"message": f"no model {body['model']}"}}
            tier = self.headers.get("x-tier")
            explanation = EXPLANATION | ({"reason": f"tier {tier}"} if tier else {})
            document = json.dumps(explanation if known else error).encode()
            self.send_response(200 if known else 404)
            self.send_header("content-length", str(len(document)))
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_exit_code_is_two_and_nothing_starts_when_a_file_is_wrong(tmp_path: Path) -> None:
    text = (QUICKSTART / "routepolicy-assistant.yaml").read_text()
    file = tmp_path / "policy.yaml"
    file.write_text(text.replace("attempts: 2", "atempts: 2"))
    result = pointsman("up", str(file))
    assert 2 == result.returncode
    assert "policy.yaml" in result.stderr
    assert "atempts" in result.stderr
    assert "attempts" in result.stderr
    assert "Ray" not in result.stderr


def test_exit_code_is_two_when_the_file_is_not_there() -> None:
    result = pointsman("up", "nowhere.yaml")
    assert 2 == result.returncode
    assert "nowhere.yaml" in result.stderr


def test_port_in_use_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text(
        "apiVersion: pointsman.dev/v1alpha1\nkind: ModelPool\nmetadata: {name: sim}\nspec:\n"
        "  servedModelName: sim\n"
        "  backend: {type: RayServe, rayServe: {engine: {type: Simulated}}}\n"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = pointsman("up", str(file), f"--port={port}")
    assert 2 == result.returncode
    assert f"127.0.0.1:{port}" in result.stderr
    assert "choose another" in result.stderr
    assert "Ray" not in result.stderr


def test_candidates_and_winner_are_shown_when_a_request_is_explained(gateway: str) -> None:
    result = pointsman("explain", "--url", gateway, "--model", "assistant", "hello")
    assert 0 == result.returncode, result.stderr
    assert "sim/one scores best of 2." in result.stdout
    [line] = [line for line in result.stdout.splitlines() if "→" in line]
    assert "one" in line
    assert "Full" in result.stdout


def test_answer_is_json_when_asked_for(gateway: str) -> None:
    body = json.dumps({"model": "assistant", "messages": []})
    result = pointsman("explain", "--url", gateway, "--body", "-", "--json", stdin=body)
    assert EXPLANATION == json.loads(result.stdout)


def test_headers_are_sent_when_a_rule_may_look_at_them(gateway: str) -> None:
    result = pointsman(
        *("explain", "--url", f"{gateway}/v1", "--model", "assistant"),
        *("--header", "x-tier=premium", "hello"),
    )
    assert 0 == result.returncode, result.stderr
    assert "tier premium" in result.stdout


def test_gateway_s_message_is_shown_when_the_model_is_unknown(gateway: str) -> None:
    result = pointsman("explain", "--url", gateway, "--model", "nobody", "hello")
    assert 2 == result.returncode
    assert "no model nobody" in result.stderr


def test_next_step_is_said_when_no_gateway_listens() -> None:
    result = pointsman("explain", "--url", "http://127.0.0.1:9", "--model", "a", "hello")
    assert 2 == result.returncode
    assert "pointsman up" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hello"], "--model is missing"),
        (["--model", "a"], "either a prompt or --body"),
        (["--body", "nowhere.json"], "nowhere.json"),
        (["--model", "a", "--header", "x-tier", "hello"], "NAME=VALUE"),
    ],
)
def test_what_is_missing_is_said_when_explain_is_asked_for_nothing(
    arguments: list[str], said: str
) -> None:
    result = pointsman("explain", *arguments)
    assert 2 == result.returncode
    assert said in result.stderr


def test_versions_are_listed() -> None:
    result = pointsman("version")
    assert 0 == result.returncode
    assert "pointsman" in result.stdout
    assert "ray" in result.stdout
