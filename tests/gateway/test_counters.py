"""Whatever happens in whatever order, everything is given back: a state machine of trouble."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Coroutine
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from pointsman_api.route_table import Hedging, LatencyObjective, Overload, RouteTable
from pointsman_serving.gateway.server import Gateway
from tests.gateway.fake_engine import (
    Behaviour,
    FakeEngine,
    answer,
    raw,
    reset,
    silence,
    status,
    word_stream,
)
from tests.gateway.harness import (
    FAST,
    Answer,
    address_of,
    ask,
    chat,
    client_of,
    gateway_to,
    post,
    table_of,
    until,
)

WORDS = 12
TEXT = "".join(f"w{number} " for number in range(WORDS))


def table(*, hedging: bool, slots: int) -> RouteTable:
    limits = dataclasses.replace(
        FAST,
        attempts=3,
        first_token_timeout_seconds=0.25,
        between_tokens_timeout_seconds=0.1,
        hedging=Hedging(enabled=hedging, budget_percent=50.0),
    )
    return table_of(
        engine="Simulated",
        slots=slots,
        resilience=limits,
        slo=LatencyObjective(ttft_seconds=0.03) if hedging else LatencyObjective(),
        overload=Overload(max_queued_requests=4, max_queue_seconds=0.3, max_cold_start_seconds=0.3),
    )


TROUBLE: dict[str, Behaviour] = {
    "none": word_stream(WORDS),
    "slow": word_stream(WORDS, gap=0.005),
    "late": answer("ok", delay=0.15),
    "reset": reset(),
    "500": status(500),
    "429": status(429),
    "400": status(400),
    "silence": silence(),
    "nonsense": raw(b"nonsense\r\n\r\n"),
    "half a head": raw(b"HTTP/1.1 200 OK\r\ncontent-ty", close=True),
    **{
        f"{how} after {count}": word_stream(WORDS, breaks_after=count, how=how)
        for how in ("reset", "silence", "truncate", "error")
        for count in (0, 5)
    },
}


class Trouble(RuleBasedStateMachine):
    """A gateway, three engines and their clients on an event loop of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.engines = [FakeEngine(name) for name in "abc"]
        self.asked: list[asyncio.Task[Answer]] = []
        self.left: list[asyncio.Task[None]] = []
        self.gateway: Gateway | None = None

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        self.runner.run(asyncio.wait_for(work, 30))

    @property
    def running(self) -> Gateway:
        assert self.gateway is not None
        return self.gateway

    @initialize(hedging=st.booleans())
    def start(self, hedging: bool) -> None:
        async def work() -> None:
            for engine in self.engines:
                engine.behaviour = TROUBLE["none"]
                await self.stack.enter_async_context(engine.running())
            self.gateway = await self.stack.enter_async_context(
                gateway_to(*self.engines, table=table(hedging=hedging, slots=2), slots=2)
            )

        self.run(work())

    @rule(stream=st.booleans(), usage=st.booleans(), count=st.integers(1, 4))
    def ask(self, stream: bool, usage: bool, count: int) -> None:
        more: dict[str, object] = {"stream_options": {"include_usage": True}} if usage else {}
        request = post(chat(stream=stream, **(more if stream else {})))

        async def work() -> None:
            for _ in range(count):
                self.asked.append(asyncio.ensure_future(ask(self.running, request)))
            await asyncio.sleep(0.002)

        self.run(work())

    @rule(after=st.sampled_from([0.0, 0.005, 0.05]), reads=st.booleans())
    def ask_and_leave(self, after: float, reads: bool) -> None:
        async def leave() -> None:
            async with client_of(self.running) as client:
                await client.send(post(chat(stream=True)))
                await asyncio.sleep(after)
                if reads:
                    with contextlib.suppress(TimeoutError, ConnectionError):
                        await asyncio.wait_for(client.reader.read(10), 0.05)

        async def work() -> None:
            self.left.append(asyncio.ensure_future(leave()))
            await asyncio.sleep(0.001)

        self.run(work())

    @rule(which=st.integers(0, 2), trouble=st.sampled_from(sorted(TROUBLE)), once=st.booleans())
    def change_an_engine(self, which: int, trouble: str, once: bool) -> None:
        if once:
            self.engines[which].once.append(TROUBLE[trouble])
        else:
            self.engines[which].behaviour = TROUBLE[trouble]

    @rule(which=st.integers(0, 2))
    def kill_and_start(self, which: int) -> None:
        async def work() -> None:
            await self.engines[which].stop()
            await self.engines[which].start()

        self.run(work())

    @rule(listed=st.sets(st.integers(0, 2)))
    def change_the_list(self, listed: set[int]) -> None:
        async def work() -> None:
            addresses = [address_of(self.engines[number], slots=2) for number in sorted(listed)]
            self.running.plane.set_replicas("p", addresses)

        self.run(work())

    @rule(hedging=st.booleans())
    def change_the_table(self, hedging: bool) -> None:
        async def work() -> None:
            self.running.set_table(table(hedging=hedging, slots=2))

        self.run(work())

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.15]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    def teardown(self) -> None:
        async def work() -> None:
            if self.gateway is not None:
                plane = self.running.plane
                for reply in await asyncio.gather(*self.asked):
                    self.check(reply)
                await asyncio.gather(*self.left)
                await until(lambda: not plane.relays)
                assert (plane.kept_bodies.held, plane.bodies.held) == (0, 0)
                for engine in self.engines:
                    await until(lambda engine=engine: engine.active == 0)  # type: ignore[misc]
            # The gateway's own check of its counters is in its context.
            await self.stack.aclose()

        try:
            self.run(work())
        finally:
            self.runner.close()

    def check(self, reply: Answer) -> None:
        """No reply is cut, and what is whole is right."""
        assert reply.complete
        assert reply.status in (200, 400, 404, 429, 503, 504)
        if reply.headers.get("content-type", "").startswith("text/event-stream"):
            assert reply.body.endswith(b"data: [DONE]\n\n")
            if b'"error"' not in reply.body and b"w0 " in reply.body:
                words = [number for number in range(WORDS) if f"w{number} ".encode() in reply.body]
                assert list(range(WORDS)) == words
                assert 1 == reply.body.count(b"w0 ")
                assert 1 == reply.body.count(b'"finish_reason":"stop"')


TestTrouble = Trouble.TestCase
TestTrouble.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    # A failing example takes as long as the gateway waits: it is printed as it was found.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestTrouble = pytest.mark.pain_5(pytest.mark.timeout(180)(TestTrouble))
