"""The gateway on either event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from tests.gateway.fake_engine import DONE, FakeEngine, answer
from tests.gateway.harness import ask, chat, client_of, events, gateway_to, post

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.mark.parametrize("name", LOOPS)
def test_gateway_answers_streams_fails_over_and_stops_when_it_runs_on_a_loop(name: str) -> None:
    async def use() -> None:
        async with (
            FakeEngine("a").running() as engine,
            FakeEngine("b").running() as other,
            gateway_to(engine, other) as gateway,
        ):
            reply = await ask(gateway, post(chat(text="x" * 400_000)))
            assert reply.status == 200
            engine.behaviour = other.behaviour = answer("y" * 3_000_000)
            reply = await ask(gateway, post(chat(stream=True)))
            assert events(reply.body)[-1] == DONE
            await engine.stop()
            for _ in range(3):
                assert (await ask(gateway, post(chat()))).status == 200
            async with client_of(gateway) as client:
                await client.send(post(b"{" * 10))
                assert (await client.answer()).status == 400
                gateway.stop()
                assert await client.closed()

    loop: Callable[[], asyncio.AbstractEventLoop] = LOOPS[name]
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(use(), 30))
