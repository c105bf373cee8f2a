"""What stands between Ray Serve and an engine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pointsman_api.modelpool import EngineType
from pointsman_api.route_table import PrefixIndex
from pointsman_serving.engines.engine import EngineFailedError
from pointsman_serving.engines.load_header import LoadHeader, load_header_value
from pointsman_serving.engines.load_lock import LOAD_LOCK_VARIABLE, turn_to_load
from pointsman_serving.engines.options import ReplicaOptions
from pointsman_serving.engines.simulated.replica import simulated_arguments
from pointsman_serving.engines.vllm import vllm_arguments

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

pytest.importorskip("ray.serve")

from pointsman_serving.engines.replica import Replica, ReplicaApp
from pointsman_serving.engines.route_prefix import rebased

OPTIONS = ReplicaOptions(
    pool="pool",
    engine=EngineType.VLLM,
    served_model_name="name",
    model_path="/models/m",
    max_sequences=16,
    context_tokens=2048,
    arguments=("--max-num-seqs=8",),
)


class EchoEngine:
    """Answers with the path that it sees; fails its health check when told."""

    def __init__(self) -> None:
        self.dead = False
        self.closed = 0
        self.scopes: list[Scope] = []

    @property
    def app(self) -> ASGIApp:
        return self._serve

    async def check_health(self) -> None:
        if self.dead:
            raise EngineFailedError("the engine core is dead")

    async def close(self) -> None:
        self.closed += 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "lifespan":
            while True:
                event = (await receive())["type"]
                await send({"type": f"{event}.complete"})
                if event == "lifespan.shutdown":
                    return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": scope["path"].encode()})


def http_scope(path: str, *, root_path: str = "", headers: list[Any] | None = None) -> Scope:
    return {
        "type": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": root_path,
        "headers": headers or [],
    }


async def call(app: ASGIApp, scope: Scope, events: list[Message] | None = None) -> list[Message]:
    sent: list[Message] = []
    waiting = iter(events or [])

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    ("path", "root_path", "seen"),
    [
        ("/pool/v1/models", "/pool", "/v1/models"),
        ("/pool", "/pool", "/"),
        ("/v1/models", "", "/v1/models"),
        ("/v1/models", "/pool", "/v1/models"),
    ],
)
def test_path_starts_at_the_engines_root_when_application_has_a_prefix(
    path: str, root_path: str, seen: str
) -> None:
    inner = rebased(http_scope(path, root_path=root_path))
    assert (seen, seen.encode()) == (inner["path"], inner["raw_path"])


async def test_engine_answers_below_the_prefix_when_asked() -> None:
    _, body = await call(ReplicaApp(EchoEngine()), http_scope("/pool/metrics", root_path="/pool"))
    assert b"/metrics" == body["body"]


@pytest.mark.parametrize(
    ("dead", "status", "text"), [(False, 200, b"success"), (True, 503, b"the engine core is dead")]
)
async def test_healthz_tells_the_engines_health_when_asked(
    dead: bool, status: int, text: bytes
) -> None:
    engine = EchoEngine()
    engine.dead = dead
    start, body = await call(ReplicaApp(engine), http_scope("/pool/-/healthz", root_path="/pool"))
    assert (status, text) == (start["status"], body["body"])


async def test_engine_is_closed_once_when_the_lifespan_ends() -> None:
    engine = EchoEngine()
    events: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = await call(ReplicaApp(engine), {"type": "lifespan"}, events)
    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == [m["type"] for m in sent]
    assert 1 == engine.closed


@pytest.mark.parametrize(
    ("form", "header"),
    [
        (b"JSON", b'JSON {"named_metrics": {"num_requests_waiting": 2.0}}'),
        (b"text", b"TEXT named_metrics.num_requests_waiting=2.0"),
        (b"BIN", None),
        (b"", None),
    ],
)
async def test_load_is_told_when_a_known_form_is_asked_for(
    form: bytes, header: bytes | None
) -> None:
    engine = EchoEngine()
    app = LoadHeader(engine.app, lambda: {"num_requests_waiting": 2.0})
    asked = [(b"endpoint-load-metrics-format", form), (b"accept", b"*/*")]
    start, _ = await call(app, http_scope("/v1/chat/completions", headers=asked))
    assert header == dict(start["headers"]).get(b"endpoint-load-metrics")
    if header is not None:
        assert [(b"accept", b"*/*")] == engine.scopes[0]["headers"]


def test_text_form_lists_all_metrics_when_there_are_several() -> None:
    value = load_header_value({"a": 0.5, "b": 1.0}, text=True)
    assert b"TEXT named_metrics.a=0.5, named_metrics.b=1.0" == value


async def test_engines_load_in_turn_when_one_turn_is_there(tmp_path: Path) -> None:
    assert 1 == await most_at_once(f"1:{tmp_path}")


async def test_engines_load_two_at_once_when_two_turns_are_there(tmp_path: Path) -> None:
    assert 2 == await most_at_once(f"2:{tmp_path}")


async def test_engines_do_not_wait_when_the_variable_is_empty() -> None:
    assert 4 == await most_at_once("")


async def test_turn_is_refused_when_the_variable_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give COUNT:FOLDER"):
        await most_at_once(f"none:{tmp_path}")


async def most_at_once(setting: str) -> int:
    """How many of four loads ran together at most."""
    running = most = 0

    async def load() -> None:
        nonlocal running, most
        async with turn_to_load({LOAD_LOCK_VARIABLE: setting}, retry_seconds=0.001):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1

    await asyncio.gather(*[load() for _ in range(4)])
    return most


def test_pools_own_arguments_come_last_when_vllm_is_started() -> None:
    arguments = vllm_arguments(OPTIONS)
    assert "--max-num-seqs=8" == arguments[-1]
    assert {
        "--model=/models/m",
        "--served-model-name=name",
        "--max-num-seqs=16",
        "--max-model-len=2048",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
    } == set(arguments[:-1])


def test_vllm_publishes_its_cache_when_the_pool_wants_events() -> None:
    more = set(vllm_arguments(replace(OPTIONS, prefix_index=PrefixIndex.EVENTS)))
    (argument,) = more - set(vllm_arguments(OPTIONS))
    flag, _, config = argument.partition("=")
    assert "--kv-events-config" == flag
    assert {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:0",
        "replay_endpoint": "tcp://*:0",
    } == json.loads(config)


def test_simulated_takes_the_pools_fields_when_started() -> None:
    assert [
        "--served-model-name=name",
        "--max-num-seqs=16",
        "--max-model-len=2048",
        "--max-num-seqs=8",
    ] == simulated_arguments(OPTIONS)


async def test_engine_is_behind_the_token_when_the_environment_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POINTSMAN_REPLICA_TOKEN", "s3cret")
    monkeypatch.setenv("POINTSMAN_RUN_DIR", str(tmp_path))
    monkeypatch.setenv(LOAD_LOCK_VARIABLE, "")
    options = ReplicaOptions(
        pool="pool", engine=EngineType.SIMULATED, served_model_name="name", revision="r"
    )
    app = await Replica(options.to_args()).__serve_build_asgi_app__()
    token = [(b"x-pointsman-token", b"s3cret")]
    statuses = []
    for path, headers in (("/models", []), ("/models", token), ("/nothing", token)):
        scope = http_scope(f"/pool/v1{path}", root_path="/pool", headers=headers) | {
            "method": "GET",
            "query_string": b"",
        }
        statuses.append((await call(app, scope))[0]["status"])
    health = http_scope("/pool/health", root_path="/pool") | {"method": "GET", "query_string": b""}
    assert ([401, 200, 404], 200) == (statuses, (await call(app, health))[0]["status"])


async def test_replica_fails_before_it_loads_anything_when_its_token_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POINTSMAN_REPLICA_TOKEN", "")
    replica = Replica(OPTIONS.to_args())
    with pytest.raises(ValueError, match="POINTSMAN_REPLICA_TOKEN is set and empty"):
        await replica.__serve_build_asgi_app__()
    assert replica.engine is None
