"""The ORCA response header, by which a replica tells its load with every answer.

vLLM sets it on complete answers only, and collects every metric it has for each. Here it comes
from numbers in memory, and streams get it too.
Source: ORCA's native HTTP header, the JSON and TEXT forms of vLLM's ``orca_metrics``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_HEADER = b"endpoint-load-metrics-format"
RESPONSE_HEADER = b"endpoint-load-metrics"


class LoadHeader:
    """ASGI middleware that answers ``endpoint-load-metrics-format: JSON`` or ``TEXT``."""

    def __init__(self, app: ASGIApp, read_load: Callable[[], Mapping[str, float]]) -> None:
        """Wrap an application.

        Args:
            app: the application; it does not see the request header.
            read_load: the load now, by ORCA metric name.
        """
        self._app = app
        self._read_load = read_load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        asked = next((value for name, value in headers if name == REQUEST_HEADER), b"")
        form = asked.strip().upper()
        if form not in (b"JSON", b"TEXT"):
            await self._app(scope, receive, send)
            return

        async def send_with_load(message: Message) -> None:
            if message["type"] == "http.response.start":
                value = load_header_value(self._read_load(), text=form == b"TEXT")
                message["headers"] = [*message.get("headers", ()), (RESPONSE_HEADER, value)]
            await send(message)

        inner = dict(scope)
        inner["headers"] = [(name, value) for name, value in headers if name != REQUEST_HEADER]
        await self._app(inner, receive, send_with_load)


def load_header_value(load: Mapping[str, float], *, text: bool) -> bytes:
    """The header's value in the JSON form, or in the TEXT form."""
    if text:
        pairs = ", ".join(f"named_metrics.{name}={value}" for name, value in load.items())
        return f"TEXT {pairs}".encode()
    return f"JSON {json.dumps({'named_metrics': dict(load)})}".encode()
