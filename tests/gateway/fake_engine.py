"""An OpenAI-compatible engine over a real socket that fails in every way that engines do.

A behaviour is an async function of (call); it writes raw bytes, so that tests say exactly what
is on the wire. ``engine.behaviour`` serves every request; ``engine.once`` the next ones first;
``engine.health`` serves GET …/health, ``engine.alive`` GET /-/healthz where it is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Call:
    """One request as the engine got it, and the connection to answer on."""

    engine: FakeEngine
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    closed: asyncio.Event

    @property
    def json(self) -> dict[str, object]:
        decoded = json.loads(self.body)
        assert isinstance(decoded, dict)
        return decoded

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """RST instead of FIN."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Call], Awaitable[None]]


@dataclass(slots=True)
class FakeEngine:
    """Counts what it gets, and behaves as it is told."""

    name: str = "a"
    host: str = "127.0.0.1"
    behaviour: Behaviour | None = None
    once: list[Behaviour] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    health: Behaviour | None = None
    alive: Behaviour | None = None
    probes: list[Call] = field(default_factory=list)
    open: int = 0
    connections: int = 0
    active: int = 0
    cancelled: int = 0
    port: int = 0
    tls: ssl.SSLContext | None = None
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeEngine]:
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, self.host, self.port, limit=64 * 1024 * 1024, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As SIGKILL: no more connections, those that are open break."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.connections += 1
        self._writers.add(writer)
        try:
            while (call := await self._read(reader, writer)) is not None:
                if call.method == "GET" and call.path.endswith(("/health", "/-/healthz")):
                    self.probes.append(call)
                    behaviour = self.health or raw(head(200, "content-length: 0"))
                    if call.path == "/-/healthz" and self.alive is not None:
                        behaviour = self.alive
                else:
                    self.calls.append(call)
                    behaviour = self.once.pop(0) if self.once else self.behaviour or answer()
                await self._run(behaviour, call, reader)
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    async def _run(self, behaviour: Behaviour, call: Call, reader: asyncio.StreamReader) -> None:
        """Run until it is done or the client leaves, as vLLM's with_cancellation does."""
        self.active += 1
        task = asyncio.ensure_future(_quiet(behaviour(call)))
        try:
            while not task.done():
                if reader.at_eof() or call.writer.is_closing():
                    call.closed.set()
                    self.cancelled += 1
                    task.cancel()
                    break
                await asyncio.wait([task], timeout=0.005)
        finally:
            self.active -= 1

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Call | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {}
        for line in lines[1:]:
            if line:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Call(self, method, path, headers, body, writer, asyncio.Event())


async def _quiet(work: Awaitable[None]) -> None:
    with contextlib.suppress(ConnectionError):
        await work


# Behaviours.


def head(status: int, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode()


def chat_object(call: Call, text: str = "hello", cached: int = 3) -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": call.json["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }
    ).encode()


def chat_event(text: str, finish: str | None = None) -> bytes:
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


USAGE_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[],"usage":{"prompt_tokens":10,"total_tokens":15,"completion_tokens":5,'
    b'"prompt_tokens_details":{"cached_tokens":3}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = head(
    200, "content-type: text/event-stream; charset=utf-8", "transfer-encoding: chunked"
)


def answer(text: str = "hello", *, delay: float = 0.0, extra: tuple[str, ...] = ()) -> Behaviour:
    """What a healthy engine does: a reply, or a stream where one is asked for."""

    async def run(call: Call) -> None:
        await asyncio.sleep(delay)
        if call.json.get("stream"):
            await stream_of(text.split(" "), extra=extra)(call)
            return
        body = chat_object(call, text)
        lines = ("content-type: application/json", f"content-length: {len(body)}", *extra)
        await call.write(head(200, *lines) + body)

    return run


def stream_of(
    words: list[str], *, gap: float = 0.0, extra: tuple[str, ...] = (), first_delay: float = 0.0
) -> Behaviour:
    """A stream, one event for each word, with the usage event where it is asked for."""

    async def run(call: Call) -> None:
        lines = ("content-type: text/event-stream; charset=utf-8", "transfer-encoding: chunked")
        await call.write(head(200, *lines, *extra))
        await asyncio.sleep(first_delay)
        for word in words:
            await call.write(chunk(chat_event(word)))
            if gap:
                await asyncio.sleep(gap)
        await call.write(chunk(chat_event("", "stop")))
        options = call.json.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            await call.write(chunk(USAGE_EVENT))
        await call.write(chunk(DONE) + b"0\r\n\r\n")

    return run


def raw(data: bytes, *, close: bool = False, pieces: int = 1) -> Behaviour:
    """Exactly these bytes, cut into pieces."""

    async def run(call: Call) -> None:
        size = max(1, -(-len(data) // pieces))
        for start in range(0, len(data), size):
            await call.write(data[start : start + size])
            if pieces > 1:
                await asyncio.sleep(0.001)
        if close:
            call.writer.close()

    return run


def status(
    code: int, *lines: str, body: bytes = b'{"error":{"message":"engine says no"}}'
) -> Behaviour:
    return raw(
        head(code, "content-type: application/json", f"content-length: {len(body)}", *lines) + body
    )


def silence() -> Behaviour:
    """Takes the request and never answers."""

    async def run(call: Call) -> None:
        await asyncio.sleep(3600)

    return run


def reset(*, after: float = 0.0) -> Behaviour:
    """RST before any byte."""

    async def run(call: Call) -> None:
        await asyncio.sleep(after)
        call.reset()

    return run


def stream_then_reset(count: int, partial: bytes = b"") -> Behaviour:
    """Some events, then RST in the middle of the stream."""

    async def run(call: Call) -> None:
        await call.write(STREAM_HEAD)
        for number in range(count):
            await call.write(chunk(chat_event(f"w{number} ")))
        if partial:
            await call.write(chunk(partial))
        await asyncio.sleep(0.02)
        call.reset()

    return run


def stream_then_silence(count: int) -> Behaviour:
    async def run(call: Call) -> None:
        await call.write(STREAM_HEAD)
        for number in range(count):
            await call.write(chunk(chat_event(f"w{number} ")))
        await asyncio.sleep(3600)

    return run


def gated(gate: asyncio.Event, text: str = "hello") -> Behaviour:
    """Answers once the gate is open."""

    async def run(call: Call) -> None:
        await gate.wait()
        await answer(text)(call)

    return run


def token_event(number: int, *, ids: list[int], text: str, finish: str | None = None) -> bytes:
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": number,
        "model": "m",
        "choices": [
            {"index": 0, "delta": {"content": text}, "finish_reason": finish, "token_ids": ids}
        ],
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def said_before(call: Call) -> list[int]:
    arguments = call.json.get("vllm_xargs")
    ids = arguments.get("pointsman_continue", []) if isinstance(arguments, dict) else []
    assert isinstance(ids, list)
    return ids


def word_stream(
    count: int,
    *,
    gap: float = 0.0,
    breaks_after: int | None = None,
    how: str = "reset",
    revision: str = "r",
) -> Behaviour:
    """Token n is the text ``wn ``; goes on from token ids as our engines do.

    Args:
        breaks_after: so many new tokens, by ``how``: reset, silence, truncate or error.
    """

    async def run(call: Call) -> None:
        wanted = call.headers.get("x-pointsman-revision", revision)
        if wanted != revision:
            await status(409)(call)
            return
        lines = ("content-type: text/event-stream", "transfer-encoding: chunked")
        await call.write(head(200, *lines, f"x-pointsman-revision: {revision}"))
        before = said_before(call)
        if before:
            text = "".join(f"w{number} " for number in before)
            await call.write(chunk(token_event(0, ids=before, text=text)))
        for number in range(len(before), count):
            if breaks_after is not None and number - len(before) >= breaks_after:
                await _break_off(call, how)
                return
            finish = "stop" if number == count - 1 else None
            event = token_event(number, ids=[number], text=f"w{number} ", finish=finish)
            await call.write(chunk(event))
            if gap:
                await asyncio.sleep(gap)
        options = call.json.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            await call.write(chunk(USAGE_EVENT))
        await call.write(chunk(DONE) + b"0\r\n\r\n")

    return run


async def _break_off(call: Call, how: str) -> None:
    match how:
        case "silence":
            await asyncio.sleep(3600)
        case "truncate":
            await call.write(b"0\r\n\r\n")
        case "error":
            await call.write(chunk(b'data: {"error":{"message":"dead","code":500}}\n\n' + DONE))
            await call.write(b"0\r\n\r\n")
        case _:
            await asyncio.sleep(0.005)
            call.reset()
