"""The gateway in front of Simulated engines: prefix caches, load and time are modelled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import uvicorn

from pointsman_serving.engines.identity import IdentityHeaders, ReplicaIdentity
from pointsman_serving.engines.simulated.app import simulated_app_of
from pointsman_serving.engines.simulated.options import parse_simulated_args
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.routing.types import Api, ReplicaAddress, ReplicaKey
from tests.gateway.harness import Answer, FixedSource, ask, chat, events, post, table_of, until


@contextlib.asynccontextmanager
async def simulated(
    name: str, *flags: str, revision: str = "aaaa"
) -> AsyncIterator[ReplicaAddress]:
    app = IdentityHeaders(
        simulated_app_of(parse_simulated_args(["--served-model-name=served", *flags])),
        ReplicaIdentity.new(revision),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", log_level="error", timeout_graceful_shutdown=1)
    )
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        yield ReplicaAddress(
            key=ReplicaKey("p", name),
            host="127.0.0.1",
            port=listener.getsockname()[1],
            model_name="served",
        )
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def fleet(count: int, *flags: str) -> AsyncIterator[Gateway]:
    async with contextlib.AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(simulated(f"r{number}", "--speed=50", *flags))
            for number in range(count)
        ]
        table = table_of(engine="Simulated")
        gateway = Gateway(settings=GatewaySettings(port=0, drain_seconds=1.0), table=table)
        await stack.enter_async_context(gateway.running([FixedSource({"p": found})]))
        await until(lambda: len(gateway.plane.replicas["p"]) == count)
        yield gateway


def usage(reply: Answer) -> dict[str, int]:
    found = reply.json["usage"]
    assert isinstance(found, dict)
    return found


def cached(reply: Answer) -> int:
    details = usage(reply)["prompt_tokens_details"]
    assert isinstance(details, dict)
    return int(details["cached_tokens"])


@pytest.mark.pain_8
async def test_simulated_group_stays_on_one_replica_when_it_shares_a_prefix() -> None:
    random_ = random.Random(0)
    async with fleet(2) as gateway:
        where: dict[int, Counter[str]] = {}
        for group in range(4):
            prefix = " ".join(str(random_.random()) for _ in range(200))
            for number in range(10):
                text = f"{prefix} question {group}.{number}"
                reply = await ask(gateway, post(chat(text=text, max_tokens=4)))
                where.setdefault(group, Counter())[reply.headers["x-pointsman-replica"]] += 1
        series = gateway.metrics.series("m", "p", Api.CHAT)
    assert all(max(counts.values()) >= 9 for counts in where.values()), where
    assert {max(counts, key=lambda name: counts[name]) for counts in where.values()} == {"r0", "r1"}
    # What the scheduler believed cached is about what the engines had cached.
    assert series.cached_tokens > 0
    assert 0.7 < series.predicted_cached_tokens / series.cached_tokens < 1.3


@pytest.mark.pain_8
async def test_simulated_chat_finds_its_cache_when_it_goes_on() -> None:
    async with fleet(3) as gateway:
        messages: list[dict[str, str]] = []
        before = 0
        for turn in range(5):
            messages.append({"role": "user", "content": f"turn {turn} " + "word " * 150})
            body = {"model": "m", "messages": messages, "max_tokens": 20}
            reply = await ask(gateway, post(body))
            assert cached(reply) >= 0.8 * before
            before = usage(reply)["prompt_tokens"]
            choices = reply.json["choices"]
            messages.append(choices[0]["message"])  # type: ignore[index]


async def test_simulated_stream_equals_the_whole_answer_when_temperature_is_0() -> None:
    body = chat(text="tell me", max_tokens=12, temperature=0)
    async with fleet(2) as gateway:
        whole = await ask(gateway, post(body))
        stream = await ask(gateway, post({**body, "stream": True}))
    words = [
        json.loads(event[6:])["choices"][0]["delta"].get("content") or ""
        for event in events(stream.body)
        if b"[DONE]" not in event
    ]
    assert "".join(words) == whole.json["choices"][0]["message"]["content"]  # type: ignore[index]
    assert b'"usage"' not in stream.body


async def test_simulated_tenants_share_nothing_when_their_prompts_are_equal() -> None:
    body = chat(text="secret " * 300, max_tokens=2)
    async with fleet(1) as gateway:
        first = await ask(gateway, post(body, "authorization: Bearer a"))
        stranger = await ask(gateway, post(body, "authorization: Bearer b"))
        again = await ask(gateway, post(body, "authorization: Bearer a"))
    assert (cached(first), cached(stranger)) == (0, 0)
    assert cached(again) > 200
