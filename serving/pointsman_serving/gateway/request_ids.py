"""Request ids on the ASGI paths, as the hot paths have them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pointsman_serving.gateway.headers import request_id_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class RequestIds:
    """Gives every request an x-request-id, the client's own where it is valid, and echoes it.

    Args:
        new_id: makes an id where the client sent none.
    """

    def __init__(self, app: AsgiApp, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the id among the request's headers, and add it to the reply's."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        request_id = request_id_of(headers, self._new_id).encode("ascii")
        kept = [pair for pair in headers if pair[0] != b"x-request-id"]
        scope["headers"] = [*kept, (b"x-request-id", request_id)]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id),
                ]
            await send(message)

        await self._app(scope, receive, send_with_id)
