"""What a replica tells of where its KV events are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from pointsman_api.modelpool import EngineType
from pointsman_api.route_table import PrefixIndex
from pointsman_serving.engines.kv_events import KvEventsHeader, kv_events_value
from pointsman_serving.engines.options import ReplicaOptions

if TYPE_CHECKING:
    from starlette.types import Message

OPTIONS = ReplicaOptions(pool="p", engine=EngineType.VLLM, served_model_name="Estimate")


@dataclass
class Config:
    """What vLLM tells of one publisher."""

    endpoint: str = "tcp://10.0.0.7:40001"
    replay_endpoint: str | None = "tcp://10.0.0.7:40002"


def test_value_names_both_ports_when_one_rank_publishes() -> None:
    assert b"40001;replay=40002" == kv_events_value({0: Config()})
    v6 = Config("tcp://[fd00::7]:40001", "tcp://[fd00::7]:40002")
    assert b"40001;replay=40002" == kv_events_value({0: v6})


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {0: Config(), 1: Config()},
        {0: Config(replay_endpoint=None)},
        {0: Config(endpoint="ipc:///tmp/events")},
        {0: Config(endpoint="tcp://*:0")},
    ],
)
def test_value_is_none_when_no_gateway_could_use_it(sources: dict[int, Config]) -> None:
    assert kv_events_value(sources) is None


async def test_every_reply_has_the_header_when_events_are_published() -> None:
    async def home(request: object) -> PlainTextResponse:
        return PlainTextResponse("hello")

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    app = KvEventsHeader(Starlette(routes=[Route("/", home)]), b"1;replay=2")
    for path in ("/", "/nowhere"):
        await app({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
    heads = [message for message in sent if message["type"] == "http.response.start"]
    assert [(200, b"1;replay=2"), (404, b"1;replay=2")] == [
        (head["status"], dict(head["headers"])[b"x-pointsman-kv-events"]) for head in heads
    ]


@pytest.mark.parametrize("index", list(PrefixIndex))
def test_options_survive_a_round_trip_when_events_are_wanted(index: PrefixIndex) -> None:
    options = ReplicaOptions(
        pool="p", engine=EngineType.VLLM, served_model_name="Estimate", prefix_index=index
    )
    assert options == ReplicaOptions.from_args(options.to_args())


def test_arguments_are_as_before_when_the_index_is_estimated() -> None:
    assert "prefix_index" not in OPTIONS.to_args()
