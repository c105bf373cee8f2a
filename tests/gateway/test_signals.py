"""A gateway in a process of its own, ended as Kubernetes and people end it."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.gateway.fake_engine import DONE, FakeEngine, stream_of
from tests.gateway.gateway_process import gateway_process
from tests.gateway.harness import Client, chat, events, post, until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.pain_14
async def test_signal_ends_streams_with_the_error_event_when_they_outlast_the_drain(
    engine: FakeEngine, number: signal.Signals
) -> None:
    engine.behaviour = stream_of(["a"] * 1000, gap=0.02)
    async with gateway_process(engine) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(post(chat(stream=True)))
        await until(lambda: engine.active == 1)
        gateway.process.send_signal(number)
        reply = await Client(reader, writer).answer()
        assert b"gateway_stopping" in events(reply.body)[-2]
        assert events(reply.body)[-1] == DONE
        assert reply.complete
        writer.close()
        assert await gateway.ended() == 0
