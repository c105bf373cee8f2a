"""Counting a replica's open requests as they pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_serving.engines.replica_token import PROBE_PATHS
from pointsman_serving.engines.route_prefix import rebased

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from pointsman_serving.engines.open_requests import OpenRequests


class CountedRequests:
    """ASGI middleware that tells which requests are open; a probe is none."""

    def __init__(self, app: ASGIApp, requests: OpenRequests) -> None:
        """Wrap an application."""
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "lifespan" or rebased(scope)["path"] in PROBE_PATHS:
            await self._app(scope, receive, send)
            return
        self._requests.began()
        try:
            await self._app(scope, receive, send)
        finally:
            self._requests.ended()
