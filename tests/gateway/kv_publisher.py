"""An engine's publisher of KV cache events on real sockets, as vLLM's, that fails when told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq
import zmq.asyncio

END = (-1).to_bytes(8, "big", signed=True)

_encode = msgspec.msgpack.encode


def stored(
    tokens: Sequence[int], *, size: int = 16, salt: str = "", names: Sequence[bytes] = ()
) -> dict[str, Any]:
    """A prompt's full blocks, as vLLM says that they are cached from now on."""
    count = len(tokens) // size
    return {
        "type": "BlockStored",
        "block_hashes": list(names) or [name_of(tokens[: (i + 1) * size]) for i in range(count)],
        "parent_block_hash": None,
        "token_ids": list(tokens[: count * size]),
        "block_size": size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [[salt] if salt and not i else None for i in range(count)],
        "group_idx": 0,
    }


def removed(tokens: Sequence[int], *, size: int = 16, first: int = 0) -> dict[str, Any]:
    """The same blocks, from the ``first`` on, are gone."""
    count = len(tokens) // size
    names = [name_of(tokens[: (i + 1) * size]) for i in range(first, count)]
    return {"type": "BlockRemoved", "block_hashes": names, "medium": "GPU", "group_idx": 0}


def name_of(tokens: Sequence[int]) -> bytes:
    return f"engine-{hash(tuple(tokens))}".encode()


def batch(*events: dict[str, Any]) -> bytes:
    return _encode([1.5, list(events), 0])


@dataclass(slots=True)
class KvPublisher:
    """Two ports; a number for each batch; a buffer to replay from."""

    ports: tuple[int, int] = (0, 0)
    number: int = 0
    buffer: list[tuple[int, bytes]] = field(default_factory=list)
    replays: list[int] = field(default_factory=list)
    silent: bool = False
    """Do not answer who asks for a replay."""
    replay_holes: set[int] = field(default_factory=set)
    """Numbers that are left out of the next answer only."""
    _context: zmq.asyncio.Context | None = None
    _pub: Any = None
    _router: Any = None
    _task: asyncio.Task[None] | None = None

    @property
    def header(self) -> str:
        return f"x-pointsman-kv-events: {self.ports[0]};replay={self.ports[1]}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[KvPublisher]:
        self.start()
        try:
            yield self
        finally:
            await self.stop()

    def start(self) -> None:
        self._context = zmq.asyncio.Context()
        self._pub = self._bound(zmq.PUB, self.ports[0])
        self._router = self._bound(zmq.ROUTER, self.ports[1])
        self.ports = (self._port(self._pub), self._port(self._router))
        self._task = asyncio.ensure_future(self._serve_replays(self._router))

    async def stop(self) -> None:
        """As SIGKILL: the connections break, and all is forgotten."""
        if self._context is None or self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)
        self._context = None
        self.number = 0
        self.buffer.clear()

    def _bound(self, kind: int, port: int) -> Any:
        assert self._context is not None
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        return socket

    @staticmethod
    def _port(socket: Any) -> int:
        return int(socket.getsockopt(zmq.LAST_ENDPOINT).rsplit(b":", 1)[1])

    async def _serve_replays(self, router: Any) -> None:
        while True:
            client, empty, start = await router.recv_multipart()
            first = int.from_bytes(start, "big")
            self.replays.append(first)
            if self.silent:
                continue
            holes, self.replay_holes = self.replay_holes, set()
            for number, payload in self.buffer:
                if number >= first and number not in holes:
                    frames = [client, empty, b"", number.to_bytes(8, "big"), payload]
                    await router.send_multipart(frames)
            await router.send_multipart([client, empty, b"", END, b""])

    async def publish(self, *events: dict[str, Any], lost: bool = False) -> None:
        """One batch; ``lost``: nobody gets it, though it can be replayed."""
        await self.publish_raw(batch(*events), lost=lost)

    async def publish_raw(self, payload: bytes, *, lost: bool = False) -> None:
        self.buffer.append((self.number, payload))
        if not lost:
            await self._pub.send_multipart([b"", self.number.to_bytes(8, "big"), payload])
        self.number += 1

    async def send_frames(self, *frames: bytes) -> None:
        await self._pub.send_multipart(list(frames))
