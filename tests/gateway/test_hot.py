"""The client's side of the wire: framing, limits, pipelining, errors."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json

import pytest

from pointsman_api.route_table import Route, RouteTable, Target
from tests.gateway.fake_engine import (
    DONE,
    STREAM_HEAD,
    USAGE_EVENT,
    FakeEngine,
    answer,
    chat_event,
    chunk,
    head,
    raw,
    status,
    stream_of,
)
from tests.gateway.harness import (
    address_of,
    ask,
    chat,
    client_of,
    events,
    gateway_to,
    post,
    table_of,
    until,
)


async def test_hot_body_is_identical_when_the_model_has_the_same_name(engine: FakeEngine) -> None:
    body = b'{"model": "served",  "messages":[{"role":"user","content":"\xc3\xa9"}], "n":1.0}'
    async with gateway_to(engine, table=table_of(model="served")) as gateway:
        reply = await ask(gateway, post(body))
    assert reply.status == 200
    assert engine.calls[0].body == body
    assert engine.calls[0].path == "/prefix/v1/chat/completions"


async def test_hot_model_is_replaced_when_the_replica_knows_another_name(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine) as gateway:
        await ask(gateway, post(chat(temperature=0.5)))
    assert engine.calls[0].json == {**chat("served"), "temperature": 0.5}


@pytest.mark.parametrize("pieces", [1, 2, 7, 60])
async def test_hot_answers_when_the_request_comes_in_pieces(
    engine: FakeEngine, pieces: int
) -> None:
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat(text="x" * 500)), pieces=pieces)
    assert reply.status == 200
    assert engine.calls[0].json["messages"] == [{"role": "user", "content": "x" * 500}]


async def test_hot_answers_when_the_body_is_chunked(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat(text="y" * 300), chunked=[1, 2, 50, 100]), pieces=9)
    assert reply.status == 200
    assert engine.calls[0].json["messages"] == [{"role": "user", "content": "y" * 300}]


@pytest.mark.parametrize("pieces", [1, 11])
async def test_hot_answers_in_order_when_requests_are_pipelined(
    engine: FakeEngine, pieces: int
) -> None:
    async def echo(call: object) -> None:
        content = call.json["messages"][0]["content"]  # type: ignore[attr-defined]
        await answer(content, delay=0.05 if content == "1" else 0.0)(call)  # type: ignore[arg-type]

    engine.behaviour = echo
    models = b"GET /v1/models HTTP/1.1\r\nhost: g\r\n\r\n"
    requests = [
        post(chat(text="1")),
        post(chat(text="2", stream=True)),
        models,
        post(chat(text="3")),
    ]
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(b"".join(requests), pieces=pieces, gap=0.02)
        replies = [await client.answer() for _ in requests]
    assert [reply.status for reply in replies] == [200] * 4
    assert replies[0].json["choices"][0]["message"]["content"] == "1"  # type: ignore[index]
    assert events(replies[1].body)[0] == chat_event("2")
    assert replies[2].json["object"] == "list"
    assert replies[3].json["choices"][0]["message"]["content"] == "3"  # type: ignore[index]


async def test_hot_answers_all_when_hundreds_of_bad_requests_are_pipelined(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat("nobody")) * 400)
        replies = [await client.answer() for _ in range(400)]
    assert {reply.status for reply in replies} == {404}


async def test_hot_connection_stays_when_requests_follow(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        for _ in range(3):
            await client.send(post(chat()))
            assert (await client.answer()).status == 200
    assert engine.connections == 1


async def test_hot_connection_closes_when_the_client_asks(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat(), "connection: close"))
        reply = await client.answer()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await client.closed()


@pytest.mark.parametrize("stream", [False, True])
async def test_hot_ends_by_closing_when_the_client_speaks_http_1_0(
    engine: FakeEngine, stream: bool
) -> None:
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat(stream=stream), version="1.0"))
        reply = await client.answer()
        assert reply.status == 200
        assert "transfer-encoding" not in reply.headers
        assert await client.closed()
    if stream:
        assert events(reply.body)[-1] == DONE


async def test_hot_says_continue_when_expected(engine: FakeEngine) -> None:
    request = post(chat(), "expect: 100-continue")
    head_bytes, _, body = request.partition(b"\r\n\r\n")
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(head_bytes + b"\r\n\r\n")
        interim = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        assert (await client.answer()).status == 200
    assert "expect" not in engine.calls[0].headers


@pytest.mark.parametrize("pieces", [1, 5])
async def test_hot_reads_the_body_when_an_upgrade_is_offered(
    engine: FakeEngine, pieces: int
) -> None:
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABk")
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        for _ in range(2):
            await client.send(post(chat(), *offer) + post(chat()), pieces=pieces)
            assert (await client.answer()).status == 200
            assert (await client.answer()).status == 200
    assert not {"upgrade", "http2-settings"} & engine.calls[0].headers.keys()


async def test_hot_is_413_when_the_length_says_too_much(engine: FakeEngine) -> None:
    async with gateway_to(engine, max_body_bytes=1000) as gateway, client_of(gateway) as client:
        head_bytes = post(chat(text="x" * 5000)).partition(b"\r\n\r\n")[0]
        await client.send(head_bytes + b"\r\n\r\n")
        reply = await client.answer()
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert "1000 bytes" in str(reply.error["message"])
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("chunked", [[], [300] * 20])
async def test_hot_is_413_and_seen_when_the_body_is_sent_whole(
    engine: FakeEngine, chunked: list[int]
) -> None:
    async with gateway_to(engine, max_body_bytes=2000) as gateway:
        for pieces in (1, 20):
            request = post(chat(text="x" * 400_000), chunked=chunked)
            reply = await ask(gateway, request, pieces=pieces)
            assert reply.status == 413
    assert engine.calls == []


async def test_hot_takes_a_body_when_it_has_exactly_the_limit(engine: FakeEngine) -> None:
    body = json.dumps(chat()).encode()
    async with gateway_to(engine, max_body_bytes=len(body)) as gateway:
        assert (await ask(gateway, post(body))).status == 200
        assert (await ask(gateway, post(body + b" "))).status == 413


@pytest.mark.parametrize(
    "headers",
    [
        "content-length: 2\r\ntransfer-encoding: chunked",
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2, 2",
        "content-length: -2",
        "transfer-encoding: gzip, chunked\r\ncontent-length: 2",
        "content-length: 2\r\n folded: 1",
    ],
)
async def test_hot_is_400_when_the_framing_is_ambiguous(engine: FakeEngine, headers: str) -> None:
    request = f"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n{headers}\r\n\r\n{{}}".encode()
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(request)
        reply = await client.answer()
        assert (reply.status, reply.error["code"]) == (400, "bad_http")
        assert await client.closed()
    assert engine.calls == []


async def test_hot_is_400_when_the_body_is_no_json(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(b'{"model":'))
        reply = await client.answer()
        assert (reply.status, reply.error["code"]) == (400, "invalid_json")
        assert set(reply.error) == {"message", "type", "param", "code"}
        await client.send(post(chat()))
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("depth", [700, 900, 20_000])
@pytest.mark.parametrize("member", ["prompt", "messages", "stream_options", "tools"])
async def test_hot_is_400_when_the_body_is_nested_too_deeply(
    engine: FakeEngine, depth: int, member: str
) -> None:
    body = f'{{"model":"m","{member}":{"[" * depth}{"]" * depth}}}'.encode()
    path = "/v1/completions" if member == "prompt" else "/v1/chat/completions"
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(body, path=path))
        explained = await ask(gateway, post(body, path="/v1/route/explain"))
    # What can be read and routed is the engine's to refuse.
    assert reply.status in ((400, 200) if depth < 1000 else (400,))
    assert explained.status in ((400, 200) if depth < 1000 else (400,))
    if member == "prompt" and depth >= 1000:
        assert (reply.status, reply.error["code"]) == (400, "invalid_json")


async def test_hot_goes_to_the_engine_that_has_the_feature_when_another_has_not(
    engine: FakeEngine, other: FakeEngine
) -> None:
    one = table_of(engine="Simulated")
    (rule,) = one.routes["m"].rules
    both = dataclasses.replace(rule, targets=(Target(pool="p", quality=1.0), Target(pool="q")))
    pools = {**one.pools, "q": dataclasses.replace(one.pools["p"], name="q", engine="VLLM")}
    table = RouteTable(pools=pools, routes={"m": Route(policy="policy", rules=(both,))})
    async with gateway_to(engine, table=table) as gateway:
        gateway.plane.set_replicas("q", [address_of(other, pool="q")])
        plain = await ask(gateway, post(chat(n=1, logprobs=False)))
        special = await ask(gateway, post(chat(n=2)))
        explained = await ask(gateway, post(chat(n=2), path="/v1/route/explain"))
        gateway.set_table(one)
        refused = await ask(gateway, post(chat(n=2)))
    assert plain.headers["x-pointsman-pool"] == "p"
    assert special.headers["x-pointsman-pool"] == "q"
    assert b"FeatureNotServed" in explained.body
    # Nobody has it: the engine says so itself.
    assert refused.headers["x-pointsman-pool"] == "p"


async def test_hot_is_404_with_the_names_when_the_model_is_unknown(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat("nobody")))
    assert reply.status == 404
    assert (reply.error["code"], reply.error["param"]) == ("model_not_found", "model")
    assert "'nobody'" in str(reply.error["message"])
    assert "m." in str(reply.error["message"])


async def test_hot_request_id_is_echoed_and_sent_on_when_valid(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        kept = await ask(gateway, post(chat(), "X-Request-ID: mine-1"))
        refused = await ask(gateway, post(chat(), "x-request-id: has space"))
        error = await ask(gateway, post(chat("nobody"), "x-request-id: mine-2"))
    assert kept.headers["x-request-id"] == "mine-1" == engine.calls[0].headers["x-request-id"]
    assert len(refused.headers["x-request-id"]) == 32
    assert error.headers["x-request-id"] == "mine-2"


async def test_hot_headers_are_passed_on_when_they_are_the_clients_business(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine) as gateway:
        request = post(chat(), "traceparent: 00-1-2-01", "authorization: Bearer k", "cookie: a=b")
        reply = await ask(gateway, request)
    sent = engine.calls[0].headers
    assert sent["traceparent"] == "00-1-2-01"
    assert sent["endpoint-load-metrics-format"] == "JSON"
    assert not {"authorization", "cookie"} & sent.keys()
    assert (reply.headers["x-pointsman-pool"], reply.headers["x-pointsman-replica"]) == ("p", "a")


async def test_hot_stream_is_byte_identical_when_the_engine_cuts_it_anywhere(
    engine: FakeEngine,
) -> None:
    shown = [chat_event(""), b": ping\n\n", chat_event("é\n\n"), chat_event("", "stop"), DONE]
    sent = [*shown[:4], USAGE_EVENT, DONE]
    wire = STREAM_HEAD + b"".join(chunk(event) for event in sent) + b"0\r\n\r\n"
    async with gateway_to(engine) as gateway:
        for pieces in (1, 3, 50):
            engine.behaviour = raw(wire, pieces=pieces)
            reply = await ask(gateway, post(chat(stream=True)))
            assert reply.body == b"".join(shown)
            assert reply.complete
    assert engine.calls[0].json["stream_options"] == {"include_usage": True}


async def test_hot_stream_has_usage_when_the_client_asked(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway:
        request = post(chat(stream=True, stream_options={"include_usage": True}))
        reply = await ask(gateway, request)
    assert USAGE_EVENT in reply.body


async def test_hot_reply_is_relayed_when_it_ends_by_closing(engine: FakeEngine) -> None:
    body = b'{"x":1}' * 100
    engine.behaviour = raw(head(200, "content-type: application/json") + body, close=True, pieces=5)
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat()))
    assert (reply.status, reply.body, reply.complete) == (200, body, True)


async def test_hot_stream_is_relayed_when_it_ends_by_closing(engine: FakeEngine) -> None:
    body = chat_event("a") + chat_event("", "stop") + DONE
    engine.behaviour = raw(
        head(200, "content-type: text/event-stream") + body, close=True, pieces=3
    )
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    assert (reply.body, reply.complete) == (body, True)


async def test_hot_reply_is_relayed_when_an_interim_response_comes_first(
    engine: FakeEngine,
) -> None:
    async def run(call: object) -> None:
        await call.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")  # type: ignore[attr-defined]
        await answer()(call)  # type: ignore[arg-type]

    engine.behaviour = run
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat()))
    assert reply.status == 200
    assert "link" not in reply.headers


@pytest.mark.parametrize("code", [400, 404, 422, 501])
async def test_hot_error_of_the_engine_is_passed_on_when_it_is_about_the_request(
    engine: FakeEngine, other: FakeEngine, code: int
) -> None:
    engine.behaviour = other.behaviour = status(code)
    async with gateway_to(engine, other) as gateway:
        reply = await ask(gateway, post(chat()))
    assert reply.status == code
    assert reply.body == b'{"error":{"message":"engine says no"}}'
    assert reply.headers["x-pointsman-replica"] in ("a", "b")
    assert len(engine.calls) + len(other.calls) == 1


async def test_hot_large_bodies_pass_both_ways_when_within_limits(engine: FakeEngine) -> None:
    text = "0123456789abcdef" * 200_000
    engine.behaviour = answer(text)
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat(text=text)))
    assert reply.json["choices"][0]["message"]["content"] == text  # type: ignore[index]
    assert engine.calls[0].json["messages"] == [{"role": "user", "content": text}]


async def test_hot_stream_passes_when_one_event_is_huge(engine: FakeEngine) -> None:
    engine.behaviour = stream_of(["x" * 3_000_000, "tail"])
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat(stream=True)))
    assert reply.complete
    assert events(reply.body)[0] == chat_event("x" * 3_000_000)
    assert events(reply.body)[-1] == DONE


async def test_hot_other_apis_are_routed_when_asked(engine: FakeEngine) -> None:
    async with gateway_to(engine, table=table_of(engine="VLLM")) as gateway:
        for path in ("/v1/completions", "/v1/embeddings", "/v1/chat/completions?x=1"):
            body: dict[str, object] = {"model": "m", "prompt": "hi", "input": "hi", "messages": []}
            assert (await ask(gateway, post(body, path=path))).status == 200
    assert [call.path for call in engine.calls] == [
        "/prefix/v1/completions",
        "/prefix/v1/embeddings",
        "/prefix/v1/chat/completions",
    ]


async def test_hot_tenants_have_different_salts_when_the_engine_can_keep_them_apart(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine, table=table_of(engine="VLLM")) as gateway:
        await ask(gateway, post(chat(), "authorization: Bearer a"))
        await ask(gateway, post(chat(), "authorization: Bearer b"))
        await ask(gateway, post(chat(), "authorization: Bearer a"))
        await ask(gateway, post(chat(cache_salt="own"), "authorization: Bearer a"))
        await ask(gateway, post(chat()))
    salts = [call.json.get("cache_salt") for call in engine.calls]
    assert salts[0] == salts[2]
    assert len({salts[0], salts[1], salts[3]}) == 3
    assert "own" not in salts
    assert salts[4] is None


async def test_hot_gateway_stops_cleanly_when_clients_idle(engine: FakeEngine) -> None:
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat()))
        await client.answer()
        gateway.stop()
        assert await client.closed()
    await until(lambda: engine.open == 0)


@pytest.mark.parametrize("pieces", [1, 40])
async def test_hot_is_431_when_the_headers_never_end(engine: FakeEngine, pieces: int) -> None:
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nx-long: "
        with contextlib.suppress(ConnectionError):
            await client.send(start)
            await asyncio.sleep(0.02)
            await client.send(b"x" * 400_000, pieces=pieces)
        reply = await client.answer()
        assert reply.status == 431
