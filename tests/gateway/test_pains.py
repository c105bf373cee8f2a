"""Pains of shipping peers that no other test shows over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from pointsman_api.route_table import Overload, RouteTable
from pointsman_serving.routing.types import Api
from tests.gateway.fake_engine import (
    DONE,
    FakeEngine,
    answer,
    gated,
    head,
    raw,
    silence,
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

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: g\r\n\r\n"


@pytest.mark.pain_1
async def test_replica_gets_nothing_new_and_ends_its_stream_when_it_leaves_the_list(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = stream_of(["w "] * 40, gap=0.02)
    other.behaviour = answer(delay=0.1)
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        await client.send(post(chat(stream=True)))
        await until(lambda: engine.active == 1)
        gateway.plane.set_replicas("p", [address_of(other)])
        # So many at once that the other would be chosen for some if it could.
        asked = [ask(gateway, post(chat(text=f"new {number}"))) for number in range(20)]
        replies = await asyncio.gather(*asked)
        assert {"b"} == {reply.headers["x-pointsman-replica"] for reply in replies}
        whole = await client.answer()
    assert len(engine.calls) == 1
    assert whole.complete
    assert events(whole.body)[-1] == DONE
    assert whole.body.count(b'"w "') == 40


@pytest.mark.pain_9
async def test_nothing_is_believed_cached_when_the_engine_says_it_is_another_instance(
    engine: FakeEngine,
) -> None:
    body = chat(text="a long story " * 400)
    ask_why = post(body, path="/v1/route/explain")
    async with gateway_to(engine) as gateway:
        believed = []
        for instance in ("0123456789abcdef", "0123456789abcdef", "fedcba9876543210"):
            engine.once = [answer(extra=(f"x-pointsman-instance: {instance}",))]
            # The second instance is told of by a request that shares nothing with the first's.
            await ask(gateway, post(chat(text=f"another {instance}") if believed else body))
            why = (await ask(gateway, ask_why)).json
            candidates = why["candidates"]
            assert isinstance(candidates, list)
            believed.append(candidates[0]["predicted_cached_tokens"])
    assert min(believed[:2]) > 100
    assert 0 == believed[2]


@pytest.mark.pain_17
async def test_limit_is_gone_when_the_table_no_longer_states_it(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = gated(gate)
    limited = table_of(slots=1, overload=Overload(max_queued_requests=1))
    free = dataclasses.replace(limited, routes=table_of(slots=1).routes)
    async with gateway_to(engine, table=limited, slots=1) as gateway:
        asked = [asyncio.ensure_future(ask(gateway, post(chat(text=str(n))))) for n in range(9)]
        # Some run and one waits; the others are refused.
        await until(lambda: sum(each.done() for each in asked) >= 6)
        assert {429} == {each.result().status for each in asked if each.done()}
        gateway.set_table(free)
        asked = [each for each in asked if not each.done()]
        asked += [asyncio.ensure_future(ask(gateway, post(chat(text=f"x{n}")))) for n in range(9)]
        await asyncio.sleep(0.1)
        gate.set()
        assert {200} == {reply.status for reply in await asyncio.gather(*asked)}


@pytest.mark.pain_15
async def test_other_models_are_served_when_a_second_route_has_no_replicas(
    engine: FakeEngine,
) -> None:
    one = table_of()
    lost = dataclasses.replace(one.pools["p"], name="lost", served_model_name="lost")
    routes = table_of(model="n").routes["n"]
    rule = dataclasses.replace(
        routes.rules[0], targets=(dataclasses.replace(routes.rules[0].targets[0], pool="lost"),)
    )
    table = RouteTable(
        pools={**one.pools, "lost": lost},
        routes={**one.routes, "n": dataclasses.replace(routes, rules=(rule,))},
    )
    async with gateway_to(engine, table=table) as gateway:
        ready = await ask(gateway, b"GET /readyz HTTP/1.1\r\nhost: g\r\n\r\n")
        assert (200, {"m": True, "n": False}) == (ready.status, ready.json["models"])
        assert (await ask(gateway, post(chat()))).status == 200


@pytest.mark.pain_20
async def test_gateway_is_alive_and_serves_when_one_backend_holds_all_it_was_given(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = silence()
    other.behaviour = answer()
    async with gateway_to(engine, other) as gateway:
        stuck = []
        while engine.active < 30:
            stuck.append(asyncio.ensure_future(ask(gateway, post(chat(text=str(len(stuck)))))))
            await asyncio.sleep(0.005)
        health = await asyncio.wait_for(ask(gateway, HEALTH), 2)
        gateway.plane.set_replicas("p", [address_of(other)])
        reply = await asyncio.wait_for(ask(gateway, post(chat(text="free"))), 2)
        for each in stuck:
            each.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
    assert (200, 200) == (health.status, reply.status)


LOADS = [
    '{"named_metrics":{"vllm:renamed_requests_queued":7},"kv_cache_usage_perc":"a lot"}',
    '{"named_metrics":{"num_waiting":{"now":3}}}',
    "TEXT named_metrics.waiting=1",
    "[]",
    "",
]


@pytest.mark.pain_21
async def test_requests_are_served_alike_when_the_engine_renames_what_it_reports(
    engine: FakeEngine,
) -> None:
    async with gateway_to(engine) as gateway:
        for load in LOADS:
            engine.once = [answer(extra=(f"endpoint-load-metrics: {load}",))]
            assert (await ask(gateway, post(chat(text=load)))).status == 200
        snapshot = gateway.scheduler.snapshot().pools[0].replicas[0]
    assert snapshot.in_flight == 0
    assert len(engine.calls) == len(LOADS)


@pytest.mark.pain_21
async def test_reply_is_relayed_and_counted_when_its_usage_has_another_shape(
    engine: FakeEngine,
) -> None:
    body = json.dumps(
        {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}],
            "usage": {"prompt_tokens": "10", "output_tokens": 5, "prompt_tokens_details": [3]},
        }
    ).encode()
    engine.behaviour = raw(
        head(200, "content-type: application/json", f"content-length: {len(body)}") + body
    )
    async with gateway_to(engine) as gateway:
        reply = await ask(gateway, post(chat()))
        series = gateway.metrics.series("m", "p", Api.CHAT)
        assert {200: 1} == series.codes
        assert 0 == series.cached_tokens
    assert (200, body) == (reply.status, reply.body)
