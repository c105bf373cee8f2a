"""Requests to the API server: identity, time limits, the right to write, waiting when told to."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from pointsman_kube.backoff import Backoff
from pointsman_kube.errors import Fenced, Garbled, Unavailable, error_of

JSON = "application/json"

OnCall = Callable[[str, str, int, float], None]
"""Told verb, resource, HTTP status (0: no answer) and seconds of every call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request."""

    verb: str
    """As RBAC calls it."""
    resource: str
    """As RBAC calls it, with the group: ``deployments.apps/status``."""
    method: str
    path: str
    asked: str
    """What is asked, for messages: ``get secrets default/key``."""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    content_type: str = JSON
    accept: str = JSON


class Transport:
    """Sends requests. Arguments as of :class:`pointsman_kube.client.Kube`."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        user_agent: str,
        may_write: Callable[[], bool],
        on_call: OnCall | None,
        timeout_seconds: float,
        silence_seconds: float,
        attempts: int,
        most_wait_seconds: float,
        source: random.Random,
    ) -> None:
        self.may_write = may_write
        self.calls: Counter[tuple[str, str]] = Counter()
        self._configuration = configuration
        self._user_agent = user_agent
        self._on_call = on_call
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=5.0)
        self._stream_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=5.0, sock_read=silence_seconds
        )
        self._attempts = attempts
        self._most_wait_seconds = most_wait_seconds
        self._source = source
        self._rest = RESTClientObject(configuration)

    async def close(self) -> None:
        """Close all connections."""
        await self._rest.close()

    async def call(self, request: Request) -> bytes:
        """Send it, again if the server turned it away unread, and return the answer's body.

        Raises:
            KubeError: the answer is an error; the types say which.
        """
        backoff = Backoff(most_seconds=self._most_wait_seconds, source=self._source)
        for left in reversed(range(self._attempts)):
            # Asked anew each time: the right to write may end while we wait.
            if request.method != "GET" and not self.may_write():
                raise Fenced(f"{request.asked}: not sent, this process may not write any more")
            try:
                return await self._send(request)
            except Unavailable as error:
                unread = error.status == 429 or (error.status == 503 and error.retry_after_seconds)
                too_long = error.retry_after_seconds > self._most_wait_seconds
                if not unread or too_long or not left:
                    raise
                await asyncio.sleep(backoff.next_seconds(error.retry_after_seconds))
        raise ValueError(f"attempts is {self._attempts}; it must be 1 or more")

    async def _send(self, request: Request) -> bytes:
        self.calls[request.verb, request.resource] += 1
        started, status = time.monotonic(), 0
        try:
            response = await self._open(request, self._timeout)
            async with response:
                status = response.status
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unavailable(request, error) from error
        finally:
            self._tell(request, status, started)
        if status >= 400:
            raise error_of(
                asked=request.asked, status=status, body=content, headers=response.headers
            )
        return content

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The lines of an answer that goes on.

        Raises:
            KubeError: the answer is an error.
            Unavailable: it broke, or was silent for too long.
        """
        self.calls[request.verb, request.resource] += 1
        started, status = time.monotonic(), 0
        try:
            response = await self._open(request, self._stream_timeout)
            status = response.status
            self._tell(request, status, started)
            async with response:
                if status >= 400:
                    content = await response.read()
                    raise error_of(
                        asked=request.asked, status=status, body=content, headers=response.headers
                    )
                async with aclosing(_lines(response.content)) as lines:
                    async for line in lines:
                        yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if not status:
                self._tell(request, 0, started)
            raise _unavailable(request, error) from error

    async def _open(
        self, request: Request, limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        headers = {
            "Content-Type": request.content_type,
            "Accept": request.accept,
            "User-Agent": self._user_agent,
        }
        # The library renews the token here, where it is told to.
        if token := (await self._configuration.auth_settings()).get("BearerToken"):
            headers[token["key"]] = str(token["value"])
        query = f"?{urlencode(request.query)}" if request.query else ""
        answer = await self._rest.request(  # type: ignore[no-untyped-call]
            request.method,
            f"{self._configuration.host}{request.path}{query}",
            headers=headers,
            body=request.body,
            _request_timeout=limits,
        )
        response: aiohttp.ClientResponse = answer.response
        return response

    def _tell(self, request: Request, status: int, started: float) -> None:
        if self._on_call is not None:
            self._on_call(request.verb, request.resource, status, time.monotonic() - started)


def parse_event(asked: str, line: bytes) -> tuple[str, dict[str, Any]]:
    """Type and object of a line of a watch.

    Raises:
        Garbled: the line is no event.
        KubeError: it tells an error.
    """
    try:
        event = json.loads(line)
        kind, obj = str(event["type"]), event["object"]
        if kind == "ERROR":
            status = int(obj.get("code") or 500)
            raise error_of(asked=asked, status=status, body=json.dumps(obj).encode(), headers={})
        checked_object(obj, named=kind != "BOOKMARK")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Garbled(f"{asked}: not an event: {line[:200]!r}") from error
    return kind, obj


def parse_object(asked: str, content: bytes) -> dict[str, Any]:
    """The object that an answer holds.

    Raises:
        Garbled: it holds none.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Garbled(
            f"{asked}: the answer is no object: {content[:200]!r}; is there a proxy before the API "
            "server?"
        )
    return found


def checked_object(obj: object, *, named: bool = True) -> dict[str, Any]:
    """An object of the API as it is, if it has what every one has.

    Raises:
        TypeError: it is none, or has no metadata, no resource version or, with ``named``, no name.
    """
    if not isinstance(obj, dict) or not isinstance(metadata := obj.get("metadata"), dict):
        raise TypeError("no object with metadata")
    for field_ in ("name", "resourceVersion") if named else ("resourceVersion",):
        if not isinstance(value := metadata.get(field_), str) or not value:
            raise TypeError(f"metadata.{field_} is {value!r}")
    return obj


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    # The reader's own lines have a limit that large objects exceed.
    parts: list[bytes] = []
    async for chunk in content.iter_any():
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            parts.append(line)
            yield b"".join(parts)
            parts.clear()
        if rest:
            parts.append(rest)


def _unavailable(request: Request, error: Exception) -> Unavailable:
    return Unavailable(f"{request.asked}: {type(error).__name__} {error}".rstrip())
