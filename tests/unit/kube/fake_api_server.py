"""A small API server for what the real one cannot be made to do: refuse, stall, forget."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from pointsman_kube.client import Kube
from pointsman_kube.kinds import CONFIG_MAP, Object


async def _nothing() -> None:
    """It does not listen yet."""


@dataclass
class FakeApiServer:
    """Serves ConfigMaps of the namespace ``default``: list and watch, with what a test sets."""

    url: str = ""
    objects: dict[str, Object] = field(default_factory=dict)
    events: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    version: int = 100
    oldest: int = 0
    """Watches from before this version get 410."""
    refusals: list[tuple[int, dict[str, str], object]] = field(default_factory=list)
    """Answers (status, headers, body) for the next requests, whatever they ask."""
    watch_refusal: tuple[int, dict[str, str], object] | None = None
    """The answer to every watch."""
    requests: list[web.Request] = field(default_factory=list)
    lists: int = 0
    watches: int = 0
    served: bool = True
    close: Callable[[], Awaitable[None]] = _nothing
    """Stop listening."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _epoch: int = 0

    def put(self, name: str, **data: str) -> None:
        self.version += 1
        kind = "MODIFIED" if name in self.objects else "ADDED"
        uid = self.objects[name]["metadata"]["uid"] if name in self.objects else f"u{self.version}"
        self.objects[name] = config_map(name, self.version, uid, data)
        self._tell({"type": kind, "object": self.objects[name]})

    def delete(self, name: str) -> None:
        self.version += 1
        gone = self.objects.pop(name)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._tell({"type": "DELETED", "object": gone})

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event that changes nothing."""
        self.version += 1
        self._tell(event)

    def forget(self) -> None:
        """Compact: what happened until now is told to nobody any more."""
        self.events.clear()
        self.oldest = self.version
        self.cut()

    def cut(self) -> None:
        """Break all watches."""
        self._epoch += 1
        self._news.set()

    def _tell(self, event: dict[str, Any]) -> None:
        # A copy: what is sent must not change with the object later.
        self.events.append((self.version, json.loads(json.dumps(event))))
        self._news.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.refusals or (self.watch_refusal and request.query.get("watch")):
            refusal = self.refusals.pop(0) if self.refusals else self.watch_refusal
            assert refusal is not None
            status, headers, body = refusal
            if isinstance(body, str):
                return web.Response(status=status, headers=headers, text=body)
            return web.json_response(body, status=status, headers=headers)
        if not self.served:
            return web.Response(status=404, text="404 page not found\n")
        if request.query.get("watch"):
            return await self._watch(request)
        self.lists += 1
        return web.json_response(
            {
                "kind": "ConfigMapList",
                "metadata": {"resourceVersion": str(self.version)},
                "items": list(self.objects.values()),
            }
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.watches += 1
        told = int(request.query["resourceVersion"])
        epoch = self._epoch
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        if told < self.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        while epoch == self._epoch:
            self._news.clear()
            for version, event in [item for item in self.events if item[0] > told]:
                await response.write(json.dumps(event).encode() + b"\n")
                told = version
            await self._news.wait()
        if request.transport is not None:
            request.transport.abort()
        return response


def config_map(name: str, version: int, uid: str, data: dict[str, str]) -> Object:
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": uid,
        "resourceVersion": str(version),
        "managedFields": [{"manager": "kubectl"}],
    }
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.name,
        "metadata": metadata,
        "data": data,
    }


def status_object(code: int, reason: str, message: str, **details: object) -> dict[str, object]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
        "details": details,
    }


@contextlib.asynccontextmanager
async def fake_api_server() -> AsyncIterator[FakeApiServer]:
    fake = FakeApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.close = runner.cleanup
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


def kube_for(server: FakeApiServer, **options: Any) -> Kube:
    configuration = Configuration(host=server.url)
    return Kube(configuration, field_manager="pointsman-test", **options)
