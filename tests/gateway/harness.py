"""A gateway on a real socket in front of fake engines, and a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from pointsman_api.route_table import (
    BackendType,
    Overload,
    PoolEntry,
    Resilience,
    Route,
    RouteTable,
    Rule,
    Target,
)
from pointsman_serving.gateway.discovery import Publish
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey
from tests.gateway.fake_engine import FakeEngine

FAST = Resilience(
    attempts=2,
    connect_timeout_seconds=1.0,
    first_token_timeout_seconds=5.0,
    between_tokens_timeout_seconds=5.0,
    request_timeout_seconds=20.0,
)


def table_of(
    *,
    slots: int = 64,
    resilience: Resilience = FAST,
    overload: Overload | None = None,
    engine: str = "Transformers",
    backend: BackendType = BackendType.RAY_SERVE,
    model: str = "m",
    **rule: object,
) -> RouteTable:
    """One pool ``p`` that is served as ``served`` and answers to ``model``."""
    only = Rule(
        name="default",
        targets=(Target(pool="p"),),
        resilience=resilience,
        overload=overload or Overload(),
        **rule,  # type: ignore[arg-type]
    )
    pool = PoolEntry(
        name="p", served_model_name="served", backend=backend, engine=engine, sequence_slots=slots
    )
    return RouteTable(pools={"p": pool}, routes={model: Route(policy="policy", rules=(only,))})


def address_of(engine: FakeEngine, *, slots: int = 64, pool: str = "p") -> ReplicaAddress:
    return ReplicaAddress(
        key=ReplicaKey(pool, engine.name),
        host=engine.host,
        port=engine.port,
        base_path="/prefix/v1",
        health_path="/prefix/health",
        model_name="served",
        sequence_slots=slots,
    )


@dataclass
class FixedSource:
    """Publishes what it is given."""

    lists: dict[str, Sequence[ReplicaAddress]]

    async def run(self, table: Callable[[], RouteTable], publish: Publish) -> None:
        for pool, addresses in self.lists.items():
            publish(pool, addresses)
        await asyncio.sleep(3600)


@contextlib.asynccontextmanager
async def gateway_to(
    *engines: FakeEngine,
    table: RouteTable | None = None,
    slots: int = 64,
    **settings: object,
) -> AsyncIterator[Gateway]:
    table = table or table_of(slots=slots)
    gateway = Gateway(
        settings=GatewaySettings(port=0, drain_seconds=1.0, **settings),  # type: ignore[arg-type]
        table=table,
    )
    lists = {"p": [address_of(engine, slots=slots) for engine in engines]}
    async with gateway.running([FixedSource(lists)]):
        if engines:
            await until(lambda: bool(gateway.plane.replicas["p"]))
        plane = gateway.plane
        yield gateway
        # Whatever a test did, nothing may be left behind.
        await until(lambda: not plane.relays)
        assert len(plane.admission) == 0
        for pool in gateway.scheduler.snapshot().pools:
            for replica in pool.replicas:
                assert (replica.in_flight, replica.decoding) == (0, 0)
                assert replica.pending_prefill_tokens == 0


async def until(condition: Callable[[], bool], *, seconds: float = 5.0) -> float:
    """Wait for a condition; returns how long it took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not so after {seconds} s")
        await asyncio.sleep(0.002)
    return time.monotonic() - started


@dataclass
class Answer:
    """One reply as it was on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool = True
    lines: list[str] = field(default_factory=list)

    @property
    def json(self) -> dict[str, object]:
        decoded = json.loads(self.body)
        assert isinstance(decoded, dict)
        return decoded

    @property
    def error(self) -> dict[str, object]:
        error = self.json["error"]
        assert isinstance(error, dict)
        return error


def chat(model: str = "m", text: str = "hi", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def post(
    body: dict[str, object] | bytes,
    *headers: str,
    path: str = "/v1/chat/completions",
    version: str = "1.1",
    chunked: Sequence[int] = (),
) -> bytes:
    """The bytes of a request; ``chunked``: sizes of the chunks, the rest is one more."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "host: gateway", "content-type: application/json"]
    lines += headers
    if not chunked:
        return "\r\n".join([*lines, f"content-length: {len(data)}", "", ""]).encode() + data
    parts = []
    at = 0
    for size in [*chunked, len(data)]:
        piece = data[at : at + size]
        at += size
        if piece:
            parts.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    head = "\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode()
    return head + b"".join(parts) + b"0\r\n\r\n"


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes, *, pieces: int = 1, gap: float = 0.001) -> None:
        size = max(1, -(-len(data) // pieces))
        for start in range(0, len(data), size):
            self.writer.write(data[start : start + size])
            await self.writer.drain()
            if pieces > 1:
                await asyncio.sleep(gap)

    async def answer(self) -> Answer:
        """Read one reply by its own framing."""
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 30)
        lines = raw.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            if line:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
        status = int(lines[0].split(" ")[1])
        if status == 100:
            return await self.answer()
        if "content-length" in headers:
            try:
                body = await self.reader.readexactly(int(headers["content-length"]))
            except asyncio.IncompleteReadError as error:
                return Answer(status, headers, error.partial, complete=False, lines=lines)
            return Answer(status, headers, body, lines=lines)
        if headers.get("transfer-encoding") == "chunked":
            body, complete = await self._chunks()
            return Answer(status, headers, body, complete=complete, lines=lines)
        return Answer(status, headers, await self.reader.read(), lines=lines)

    async def _chunks(self) -> tuple[bytes, bool]:
        body = b""
        try:
            while True:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                body += (await self.reader.readexactly(size + 2))[:-2]
                if size == 0:
                    return body, True
        except (asyncio.IncompleteReadError, ConnectionError):
            return body, False

    async def closed(self) -> bool:
        """Whether the server closes the connection now."""
        return await asyncio.wait_for(self.reader.read(1), 5) == b""

    def close(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def client_of(gateway: Gateway) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", gateway.port, limit=64 * 1024 * 1024
    )
    client = Client(reader, writer)
    try:
        yield client
    finally:
        client.close()


async def ask(gateway: Gateway, request: bytes, *, pieces: int = 1) -> Answer:
    """One request on a connection of its own."""
    async with client_of(gateway) as client:
        await client.send(request, pieces=pieces)
        return await client.answer()


def events(body: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in body.split(b"\n\n") if event]
