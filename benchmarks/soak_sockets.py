"""A gateway process under requests over kept connections, of which many do not end well.

The engines are Simulated ones that now and then answer 500, break in the middle of a stream or
say nothing at all; the clients now and then leave, ask for what there is not, or send half a
request. No prompt comes twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import httptools
import uvicorn
import uvloop

from benchmarks.resident import Sample, resident_bytes
from pointsman_api.route_table import Resilience, RouteTable, dump_route_table
from tests.chaos import gateway_process
from tests.chaos.counters import leftovers, settled, total
from tests.chaos.engine_process import replica_app
from tests.chaos.fleet import CONTEXT, said
from tests.chaos.stream import request_bytes
from tests.gateway.harness import table_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENGINES = 3
SLOTS = 64
TENANTS = 100_000
LANES = 48
"""Connections that ask one after another."""
FLAGS = ("--served-model-name=served", f"--max-num-seqs={SLOTS}", "--speed=20", "--seed=3")

FAILS, BREAKS, SAYS_NOTHING = 0.02, 0.01, 0.001
"""Shares of an engine's replies."""
LEAVES, ASKS_WRONG, SENDS_HALF = 0.02, 0.01, 0.002
"""Shares of the clients' requests."""


class Fickle:
    """An ASGI application that does not always do its work."""

    def __init__(self, app: ASGIApp, *, seed: int) -> None:
        self._app = app
        self._chance = random.Random(seed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, fail, break off or say nothing."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        fate = self._chance.random()
        if fate < FAILS:
            raise RuntimeError("an engine that fails")
        if fate < FAILS + SAYS_NOTHING:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        if fate < FAILS + SAYS_NOTHING + BREAKS:
            await self._app(scope, receive, _breaking(send, self._chance.randrange(1, 6)))
            return
        await self._app(scope, receive, send)


def _breaking(send: Send, count: int) -> Send:
    left = count

    async def some(message: Message) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("an engine that breaks")
        await send(message)

    return some


def serve_engine(number: int, tell: Connection) -> None:
    """A fickle engine, until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    app = Fickle(replica_app(FLAGS), seed=number)
    config = uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False)

    async def run() -> None:
        tell.send(listener.getsockname()[1])
        tell.close()
        await uvicorn.Server(config).serve(sockets=[listener])

    uvloop.run(run())


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketsOutcome:
    """What came of a run."""

    samples: list[Sample]
    statuses: dict[str, int]
    """As the clients saw them; ``left`` where they did not wait for the end."""
    counted: dict[str, float]
    """Requests and tokens by the gateway's own count."""
    leftovers: dict[str, float]


class _Lane(asyncio.Protocol):
    """One kept connection; httptools calls the ``on_`` methods."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._parser = httptools.HttpResponseParser(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    async def ask(self, request: bytes) -> int:
        """The status once the reply is whole; 0: the connection broke."""
        if self.transport is None:
            return 0
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)  # type: ignore[attr-defined]
        return await self._answer


class SocketsSoak:
    """A gateway, its engines, and clients.

    Args:
        seed: of the clients.
        folder: for the gateway's log and list of replicas.
    """

    def __init__(self, *, seed: int, folder: Path) -> None:
        self._seed = seed
        self._folder = folder
        self._asked = 0
        self._statuses = Counter[str]()

    async def run(
        self, requests: int, *, every: int, say: Callable[[Sample], None]
    ) -> SocketsOutcome:
        """Ask so many times.

        Args:
            every: requests between two readings of the gateway's memory.
            say: gets each reading.
        """
        samples: list[Sample] = []
        async with self._gateway() as (pid, port):
            started = time.monotonic()

            def read(asked: int) -> None:
                seconds = time.monotonic() - started
                samples.append(Sample(asked, seconds, resident_bytes(pid) / 2**20))
                say(samples[-1])

            lanes = [
                asyncio.ensure_future(self._lane(number, port, requests, every, read))
                for number in range(LANES)
            ]
            await asyncio.gather(*lanes)
            metrics = await settled(port)
        names = ("requests", "prompt_tokens", "completion_tokens")
        return SocketsOutcome(
            samples=samples,
            statuses=dict(self._statuses),
            counted={name: total(metrics, name) for name in names},
            leftovers=leftovers(metrics),
        )

    async def _lane(
        self, number: int, port: int, requests: int, every: int, read: Callable[[int], None]
    ) -> None:
        chance = random.Random(f"{self._seed} {number}")
        lane = _Lane()
        while self._asked < requests:
            self._asked += 1
            asked = self._asked
            if lane.transport is None:
                lane = _Lane()
                await asyncio.get_running_loop().create_connection(
                    lambda made=lane: made, "127.0.0.1", port
                )
            request = request_of(asked, chance)
            fate = chance.random()
            if fate < LEAVES + SENDS_HALF:
                await self._leave(lane, request, chance, half=fate >= LEAVES)
            else:
                self._statuses[str(await lane.ask(request))] += 1
            if asked % every == 0:
                read(asked)

    async def _leave(
        self, lane: _Lane, request: bytes, chance: random.Random, *, half: bool
    ) -> None:
        sent = request[: chance.randrange(len(request))] if half else request
        waiting = asyncio.ensure_future(lane.ask(sent))
        await asyncio.sleep(chance.random() * 0.2)
        if waiting.done() and waiting.result():
            self._statuses[str(waiting.result())] += 1
            return
        if lane.transport is not None:
            lane.transport.close()
        await waiting
        self._statuses["left"] += 1

    @contextlib.asynccontextmanager
    async def _gateway(self) -> AsyncIterator[tuple[int, int]]:
        processes = []
        try:
            listed = []
            for number in range(ENGINES):
                ours, theirs = CONTEXT.Pipe()
                engine = CONTEXT.Process(target=serve_engine, args=(number, theirs), daemon=True)
                engine.start()
                processes.append(engine)
                theirs.close()
                port = await said(ours, engine, f"engine {number}")
                listed.append(
                    {"name": f"e{number}", "host": "127.0.0.1", "port": port, "slots": SLOTS}
                )
            listing = self._folder / "replicas.json"
            listing.write_text(json.dumps({"p": listed}))
            ours, theirs = CONTEXT.Pipe()
            log = self._folder / "gateway.log"
            gateway = CONTEXT.Process(
                target=gateway_process.serve,
                args=(dump_route_table(route_table()), listing, log, 5.0, theirs),
                daemon=True,
            )
            gateway.start()
            processes.append(gateway)
            theirs.close()
            port = await said(ours, gateway, "the gateway")
            await asyncio.sleep(1.0)
            yield gateway.pid or 0, port
        finally:
            for process in processes:
                process.kill()
                await asyncio.to_thread(process.join, 10)


def request_of(number: int, chance: random.Random) -> bytes:
    """A request that never was before, of one of the tenants."""
    words = " ".join(str(chance.randrange(10**6)) for _ in range(chance.randrange(5, 60)))
    stream = chance.random() < 0.6
    body: dict[str, object] = {
        "model": "assistant" if chance.random() >= ASKS_WRONG else f"nobody-{number}",
        "messages": [{"role": "user", "content": f"{number} {words}"}],
        "temperature": 0,
        "max_tokens": chance.randrange(1, 12),
        "stream": stream,
    }
    if stream and chance.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    headers = [f"authorization: Bearer tenant-{chance.randrange(TENANTS)}"]
    if chance.random() < 0.3:
        headers.append(f"x-session-id: session-{number}")
    return request_bytes("/v1/chat/completions", body, *headers)


def route_table() -> RouteTable:
    """One pool whose replicas are given up on soon."""
    limits = Resilience(
        attempts=3,
        connect_timeout_seconds=1.0,
        first_token_timeout_seconds=2.0,
        between_tokens_timeout_seconds=2.0,
        request_timeout_seconds=20.0,
    )
    return table_of(engine="Simulated", model="assistant", slots=SLOTS, resilience=limits)
