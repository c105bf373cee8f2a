"""Refuses to continue what cannot be continued, before an engine that is not ours sees it."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from pointsman_serving.engines.continuation import (
    ARGUMENTS_FIELD,
    CONTINUE_ARGUMENT,
    refusal,
    tokens_to_continue,
)
from pointsman_serving.engines.openai_errors import error_body, send_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
_MARK = CONTINUE_ARGUMENT.encode()


class ContinuationGate:
    """ASGI middleware that answers 400 to a body whose answer cannot be continued.

    A body without ``pointsman_continue`` costs one search through its bytes.
    """

    def __init__(self, app: ASGIApp, *, unsupported: str | None) -> None:
        """Wrap an application.

        Args:
            app: what generates.
            unsupported: why it continues nothing at all; None where it can.
        """
        self._app = app
        self._unsupported = unsupported

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http" or scope["path"] not in _PATHS:
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        while True:
            message = await receive()
            messages.append(message)
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        body = b"".join(message.get("body", b"") for message in messages)
        reason = self._reason(body) if _MARK in body else None
        if reason is not None:
            await _refuse(reason, send)
            return
        waiting = iter(messages)

        async def receive_again() -> Message:
            for message in waiting:
                return message
            return await receive()

        await self._app(scope, receive_again, send)

    def _reason(self, body: bytes) -> str | None:
        try:
            document = json.loads(body)
            if not isinstance(document, dict) or tokens_to_continue(document) is None:
                return None
        except RecursionError:
            return None  # the application says what is wrong with the body
        except json.JSONDecodeError:
            return None
        except ValueError as error:
            return str(error)
        return self._unsupported or refusal(document)


async def _refuse(reason: str, send: Send) -> None:
    document = error_body(
        reason, status=HTTPStatus.BAD_REQUEST, kind="BadRequestError", param=ARGUMENTS_FIELD
    )
    await send_error(send, HTTPStatus.BAD_REQUEST, document)
