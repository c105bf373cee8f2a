"""What the pod of `helm test` does, against a server that answers as a gateway may."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.chart.chart import container, one, render

MODELS = {"object": "list", "data": [{"id": "smollm2"}, {"id": "assistant"}]}
COMPLETION = {"choices": [{"message": {"role": "assistant", "content": "Yes."}}]}


class Gateway:
    """A server with an answer for each path; remembers the bodies that it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "/v1/models": (200, MODELS),
            "/v1/chat/completions": (200, COMPLETION),
        }
        self.bodies: list[Any] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                gateway.bodies.append(json.loads(self.rfile.read(length)))
                self._answer()

            def _answer(self) -> None:
                status, body = gateway.answers[self.path]
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def run(url: str, **values: Any) -> subprocess.CompletedProcess[str]:
    """The pod's own command and arguments, with another address."""
    found = container(one(render({"test": values}), "Pod", "test"))
    command = [sys.executable, *found["command"][1:], url, *found["args"][1:]]
    assert "python" == found["command"][0]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_request_passes_and_lists_the_models_when_no_model_is_named(gateway: Gateway) -> None:
    done = run(gateway.url)
    assert (0, "models: assistant, smollm2\n") == (done.returncode, done.stdout)
    assert [] == gateway.bodies


def test_request_passes_when_there_are_no_models_yet(gateway: Gateway) -> None:
    gateway.answers["/v1/models"] = (200, {"object": "list", "data": []})
    assert "models: none yet\n" == run(gateway.url).stdout


def test_request_asks_for_a_completion_when_a_model_is_named(gateway: Gateway) -> None:
    done = run(gateway.url, model="assistant")
    assert (0, "assistant: Yes.") == (done.returncode, done.stdout.splitlines()[-1])
    assert ["assistant"] == [body["model"] for body in gateway.bodies]


def test_request_fails_with_the_gateways_words_when_the_model_is_unknown(gateway: Gateway) -> None:
    error = {"error": {"message": "no model 'x'; there are assistant, smollm2"}}
    gateway.answers["/v1/chat/completions"] = (404, error)
    done = run(gateway.url, model="x")
    assert 1 == done.returncode
    assert "404" in done.stderr
    assert "there are assistant, smollm2" in done.stderr


def test_request_fails_when_something_else_answers(gateway: Gateway) -> None:
    gateway.answers["/v1/models"] = (200, {"hello": "world"})
    done = run(gateway.url)
    assert 1 == done.returncode
    assert "no list of models" in done.stderr


def test_request_fails_with_the_next_step_when_nobody_answers_in_time() -> None:
    done = run("http://127.0.0.1:9", timeoutSeconds=1)
    assert 1 == done.returncode
    assert "Do the gateway's pods run?" in done.stderr


def test_request_goes_to_the_gateways_service() -> None:
    objects = render({"gateway": {"service": {"port": 8000}}}, release="llm", namespace="serving")
    service = one(
        [each for each in objects if "admin" not in each["metadata"]["name"]], "Service", "gateway"
    )
    address = container(one(objects, "Pod", "test"))["args"][0]
    assert f"http://{service['metadata']['name']}.serving:8000" == address
