"""OpenAI error objects, in the shape and with the types of vLLM 0.32."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Send


class ApiError(Exception):
    """A request that is answered with an OpenAI error object."""

    def __init__(
        self,
        message: str,
        *,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        kind: str = "BadRequestError",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, status=status, kind=kind, param=param)


def error_body(
    message: str,
    *,
    status: int,
    kind: str,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, object]:
    """An error object as vLLM's ErrorResponse; ``code`` is the HTTP status where none is given."""
    error = {"message": message, "type": kind, "param": param, "code": code or int(status)}
    return {"error": error}


async def send_error(send: Send, status: int, document: Mapping[str, object]) -> None:
    """Answer with an error object where there is no application to do it."""
    body = json.dumps(document).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
