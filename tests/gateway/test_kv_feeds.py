"""A gateway that follows KV cache events over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import aiohttp
import pytest

from pointsman_api.route_table import CacheIsolation, PrefixIndex, RouteTable
from pointsman_serving.gateway.body import parse_body
from pointsman_serving.gateway.headers import parse_headers
from pointsman_serving.gateway.isolation import engine_salt
from pointsman_serving.gateway.kv import feed as kv_feed
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.routing.types import Api
from tests.gateway.fake_engine import (
    DONE,
    USAGE_EVENT,
    Behaviour,
    Call,
    FakeEngine,
    answer,
    chunk,
    head,
)
from tests.gateway.harness import (
    Answer,
    address_of,
    ask,
    chat,
    gateway_to,
    post,
    table_of,
    until,
)
from tests.gateway.kv_publisher import KvPublisher, batch, removed, stored

STORY = "Once upon a time there was a signalman. " * 25
TOKENS = list(range(1_000, 1_256))
ANSWER = list(range(2_000, 2_032))


def events_table(index: PrefixIndex = PrefixIndex.EVENTS, **rule: object) -> RouteTable:
    table = table_of(engine="VLLM", **rule)  # type: ignore[arg-type]
    pool = replace(table.pools["p"], prefix_index=index)
    return replace(table, pools={"p": pool})


def speaking(
    publisher: KvPublisher, tokens: Sequence[int] = TOKENS, said: Sequence[int] = ANSWER
) -> Behaviour:
    """A stream with its token ids, as vLLM's, and the header that names the publisher's ports."""

    async def run(call: Call) -> None:
        assert call.json["return_token_ids"] is True
        lines = (
            "content-type: text/event-stream",
            "transfer-encoding: chunked",
            "x-pointsman-revision: r",
            publisher.header,
        )
        await call.write(head(200, *lines))
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}}
        await call.write(chunk(_event(role, prompt_token_ids=list(tokens))))
        for number, token in enumerate(said):
            word = {"index": 0, "delta": {"content": f"word{number} "}, "token_ids": [token]}
            await call.write(chunk(_event(word)))
            await asyncio.sleep(0)
        await call.write(chunk(_event({"index": 0, "delta": {}, "finish_reason": "stop"})))
        await call.write(chunk(USAGE_EVENT))
        await asyncio.sleep(0.02)
        await call.write(chunk(DONE) + b"0\r\n\r\n")

    return run


def _event(choice: dict[str, object], **more: object) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
        **more,
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


@contextlib.asynccontextmanager
async def following(
    engine: FakeEngine, publisher: KvPublisher, table: RouteTable | None = None
) -> AsyncIterator[Gateway]:
    """A gateway that has been told of the publisher, and has caught up with it."""
    engine.behaviour = speaking(publisher)
    async with gateway_to(engine, table=table or events_table()) as gateway:
        await tell(gateway)
        await until(lambda: state(gateway) == {"live": 1})
        yield gateway


async def tell(gateway: Gateway, text: str = STORY, *headers: str) -> Answer:
    return await ask(gateway, post(chat(text=text, stream=True), *headers))


def state(gateway: Gateway) -> dict[str, int]:
    readings = gateway.plane.kv_feeds.readings()
    return dict(readings["p"].states) if "p" in readings else {}


def held(gateway: Gateway) -> dict[str, int]:
    return dict(gateway.scheduler.kv.snapshot()[0].held_blocks)


async def predicted(gateway: Gateway, messages: list[dict[str, str]], **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{gateway.url}/v1/route/explain",
            json={"model": "m", "messages": messages},
            headers=headers,
        ) as response,
    ):
        explained = await response.json()
    return int(explained["candidates"][0]["predicted_cached_tokens"])


ASKED = [{"role": "user", "content": STORY}]


@pytest.fixture
async def publisher() -> AsyncIterator[KvPublisher]:
    async with KvPublisher().running() as running:
        yield running


async def test_prediction_is_what_the_engine_tells_when_blocks_come_and_go(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    await publisher.publish(stored(TOKENS))
    async with following(engine, publisher) as gateway:
        assert {"a": 16} == held(gateway)
        await tell(gateway)
        assert 256 == await predicted(gateway, ASKED)
        await publisher.publish(removed(TOKENS, first=5))
        await until(lambda: held(gateway) == {"a": 5})
        assert 80 == await predicted(gateway, ASKED)


async def test_next_turn_is_predicted_with_the_answer_when_the_engine_keeps_it(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    await publisher.publish(stored(TOKENS + ANSWER))
    async with following(engine, publisher) as gateway:
        await tell(gateway)
        said = "".join(f"word{number} " for number in range(len(ANSWER)))
        turn = [
            *ASKED,
            {"role": "assistant", "content": said},
            {"role": "user", "content": "and then?"},
        ]
        assert len(TOKENS + ANSWER) == await predicted(gateway, turn)


async def test_client_sees_neither_ports_nor_token_ids(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    async with following(engine, publisher) as gateway:
        reply = await tell(gateway)
    assert "x-pointsman-kv-events" not in reply.headers
    assert b"token_ids" not in reply.body
    assert b"word31" in reply.body


async def test_missed_batch_is_asked_for_when_the_next_one_comes(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    async with following(engine, publisher) as gateway:
        await publisher.publish(stored(TOKENS), lost=True)
        await publisher.publish(removed(TOKENS, first=8), lost=True)
        await publisher.publish(stored([5] * 16))
        await until(lambda: held(gateway) == {"a": 9})
        reading = gateway.plane.kv_feeds.readings()["p"]
        assert (1, 3, [0, 0]) == (reading.gaps, reading.events, publisher.replays)
        held_now = gateway.scheduler._pools["p"].states[0].cache.held
        assert held_now is not None
        assert held_now.complete


async def test_replay_is_asked_for_again_when_it_has_holes(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    for number in range(10):
        await publisher.publish(stored([number] * 16))
    publisher.replay_holes = {3, 4, 8}
    async with following(engine, publisher) as gateway:
        assert {"a": 10} == held(gateway)
        assert [0, 3] == publisher.replays


@pytest.mark.pain_9
async def test_nothing_of_before_is_believed_when_what_was_missed_is_gone(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    await publisher.publish(stored(TOKENS))
    async with following(engine, publisher) as gateway:
        assert {"a": 16} == held(gateway)
        await publisher.publish(removed(TOKENS), lost=True)
        publisher.buffer.clear()
        await publisher.publish(stored([5] * 16))
        await until(lambda: held(gateway) == {"a": 1})
        known = gateway.scheduler._pools["p"].states[0].cache.held
        assert known is not None
        assert not known.complete


@pytest.mark.pain_9
async def test_index_is_cleared_at_once_when_the_engine_dies(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    await publisher.publish(stored(TOKENS))
    async with following(engine, publisher) as gateway:
        await tell(gateway)
        assert 256 == await predicted(gateway, ASKED)
        await publisher.stop()
        await until(lambda: held(gateway) == {})
        assert {"broken": 1} == state(gateway)
        # As a new process under the same ports.
        publisher.start()
        await publisher.publish(stored([5] * 16))
        await until(lambda: state(gateway) == {"live": 1}, seconds=10)
        assert {"a": 1} == held(gateway)
        assert 0 == await predicted(gateway, ASKED)


@pytest.mark.pain_9
async def test_new_ports_are_followed_when_a_reply_names_others(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    await publisher.publish(stored(TOKENS))
    async with following(engine, publisher) as gateway, KvPublisher().running() as reborn:
        assert {"a": 16} == held(gateway)
        engine.behaviour = speaking(reborn)
        await tell(gateway)
        await until(lambda: reborn.replays == [0])
        await until(lambda: held(gateway) == {"a": 0} and state(gateway) == {"live": 1})


async def test_feed_ends_when_its_replica_leaves(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    await publisher.publish(stored(TOKENS))
    async with following(engine, publisher) as gateway:
        gateway.plane.set_replicas("p", [])
        assert {} == state(gateway)
        gateway.plane.set_replicas("p", [address_of(engine)])
        assert {} == held(gateway)
        await tell(gateway)
        await until(lambda: held(gateway) == {"a": 16})
        gateway.set_table(events_table(PrefixIndex.ESTIMATE))
        assert ({}, {}) == (state(gateway), held(gateway))


@pytest.mark.parametrize("index", [PrefixIndex.ESTIMATE, PrefixIndex.EVENTS])
async def test_nothing_is_followed_when_the_pool_does_not_want_it_or_the_header_is_wrong(
    engine: FakeEngine, publisher: KvPublisher, index: PrefixIndex
) -> None:
    header = publisher.header if index is PrefixIndex.ESTIMATE else "x-pointsman-kv-events: 0;a"
    engine.behaviour = answer("hello", extra=(header,))
    async with gateway_to(engine, table=events_table(index)) as gateway:
        assert 200 == (await tell(gateway)).status
        assert {} == state(gateway)


@pytest.mark.parametrize(
    "frames",
    [
        (b"", (0).to_bytes(8, "big"), b"nonsense"),
        (b"", (0).to_bytes(8, "big"), b"\x81" * 10_000),
        (b"", b"short", batch()),
        (b"one frame",),
        (b"", b"", b"", b""),
        (b"", (0).to_bytes(8, "big"), b"\xc1" * 4_000_000),
    ],
)
async def test_estimate_holds_and_requests_pass_when_nonsense_is_published(
    engine: FakeEngine, publisher: KvPublisher, frames: tuple[bytes, ...]
) -> None:
    async with following(engine, publisher) as gateway:
        await publisher.send_frames(*frames)
        await until(lambda: state(gateway) == {"broken": 1})
        assert {} == held(gateway)
        reply = await tell(gateway)
        assert (200, True) == (reply.status, b"[DONE]" in reply.body)
        assert 1 == gateway.plane.kv_feeds.readings()["p"].failures


async def test_estimate_holds_when_nobody_answers_at_the_ports(engine: FakeEngine) -> None:
    publisher = KvPublisher(ports=(1, 1))
    engine.behaviour = speaking(publisher)
    async with gateway_to(engine, table=events_table()) as gateway:
        assert 200 == (await tell(gateway)).status
        await until(lambda: state(gateway) == {"broken": 1}, seconds=10)
        assert {} == held(gateway)


async def test_estimate_holds_when_the_replay_is_never_answered(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    publisher.silent = True
    engine.behaviour = speaking(publisher)
    async with gateway_to(engine, table=events_table()) as gateway:
        await tell(gateway)
        await until(lambda: state(gateway) == {"broken": 1}, seconds=kv_feed.REPLAY_SECONDS + 5)
        assert [0] == publisher.replays[:1]


async def test_requests_pass_when_a_replica_floods(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    """The loop keeps most of its time, and memory stays bounded, however much is published."""
    async with following(engine, publisher) as gateway:
        flood = asyncio.ensure_future(_flood(publisher))
        try:
            until_at = time.monotonic() + 2.0
            answered = 0
            while time.monotonic() < until_at:
                reply = await asyncio.wait_for(tell(gateway), 10)
                assert b"[DONE]" in reply.body
                answered += 1
        finally:
            flood.cancel()
        assert answered >= 3
        assert gateway.plane.kv_feeds.readings()["p"].events > 0
        (counts,) = gateway.scheduler.kv.snapshot()
        assert all(size <= 262_144 for size in counts.held_blocks.values())


async def _flood(publisher: KvPublisher) -> None:
    number = 0
    while True:
        events = []
        for _ in range(20):
            number += 1
            events.append(stored([number] * 512))
        await publisher.publish(*events)
        if len(publisher.buffer) > 50:
            del publisher.buffer[:25]
        await asyncio.sleep(0)


async def test_tenants_are_apart_when_the_engine_is_salted(
    engine: FakeEngine, publisher: KvPublisher
) -> None:
    table = events_table(cache_isolation=CacheIsolation.TENANT)
    async with following(engine, publisher, table) as gateway:
        await tell(gateway, STORY, "authorization: Bearer one")
        salt = str(engine.calls[-1].json["cache_salt"])
        await publisher.publish(stored(TOKENS, salt=salt))
        await until(lambda: held(gateway) == {"a": 16})
        for _ in range(2):
            await tell(gateway, STORY, "authorization: Bearer one")
            await tell(gateway, STORY, "authorization: Bearer two")
        assert salt != engine.calls[-1].json["cache_salt"]
        assert 256 == await predicted(gateway, ASKED, authorization="Bearer one")
        assert 0 == await predicted(gateway, ASKED, authorization="Bearer two")


@pytest.mark.parametrize("own", ["", "mine"])
@pytest.mark.parametrize("key", ["", "Bearer key"])
@pytest.mark.parametrize("isolation", list(CacheIsolation))
async def test_salt_is_known_as_the_engine_gets_it(
    engine: FakeEngine, own: str, key: str, isolation: CacheIsolation
) -> None:
    table = events_table(cache_isolation=isolation)
    async with gateway_to(engine, table=table) as gateway:
        body = chat(stream=True, **({"cache_salt": own} if own else {}))
        await ask(gateway, post(body, *([f"authorization: {key}"] if key else [])))
        raw = [(b"authorization", key.encode())] if key else []
        request, _ = gateway.plane.route(
            Api.CHAT, parse_headers(raw, "id"), parse_body(json.dumps(body).encode())
        )
    assert engine.calls[-1].json.get("cache_salt", "") == engine_salt(request.tenant)


async def test_estimate_holds_when_pyzmq_is_not_installed(
    engine: FakeEngine, publisher: KvPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zmq.asyncio", None)
    engine.behaviour = speaking(publisher)
    async with gateway_to(engine, table=events_table()) as gateway:
        assert 200 == (await tell(gateway)).status
        assert ({}, {}) == (state(gateway), held(gateway))


async def test_metrics_tell_how_the_feeds_go(engine: FakeEngine, publisher: KvPublisher) -> None:
    await publisher.publish(stored(TOKENS))
    async with (
        following(engine, publisher) as gateway,
        aiohttp.ClientSession() as session,
        session.get(f"{gateway.url}/metrics") as response,
    ):
        text = await response.text()
    lines = set(text.splitlines())
    assert {
        'pointsman_gateway_kv_event_subscriptions{pool="p",state="live"} 1.0',
        'pointsman_gateway_kv_event_subscriptions{pool="p",state="broken"} 0.0',
        'pointsman_gateway_kv_events_total{pool="p"} 1.0',
        'pointsman_gateway_kv_event_gaps_total{pool="p"} 0.0',
        'pointsman_gateway_cache_predictions_total{pool="p",source="exact"} 0.0',
        'pointsman_gateway_cache_predictions_total{pool="p",source="estimate"} 1.0',
    } <= lines
