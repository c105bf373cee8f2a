"""What the answers of both generating endpoints have in common, whole and as server-sent events."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Message

DONE = b"data: [DONE]\n\n"
"""Ends every stream."""


class Endpoint(StrEnum):
    """Which of the two generating endpoints was called."""

    CHAT = "chat"
    COMPLETION = "completion"

    @property
    def id_prefix(self) -> str:
        """What a reply's id begins with, before the hyphen."""
        return "chatcmpl" if self is Endpoint.CHAT else "cmpl"

    @property
    def whole_object(self) -> str:
        """The ``object`` of a whole answer."""
        return "chat.completion" if self is Endpoint.CHAT else "text_completion"

    @property
    def chunk_object(self) -> str:
        """The ``object`` of a chunk."""
        return "chat.completion.chunk" if self is Endpoint.CHAT else "text_completion"


def reply_head(
    object_name: str, *, reply_id: str, created: int, model_name: str
) -> dict[str, object]:
    """The fields that answers and chunks begin with; ``created`` is seconds since the epoch."""
    return {"id": reply_id, "object": object_name, "created": created, "model": model_name}


def server_sent_event(data: bytes) -> bytes:
    """One event of a stream; the data has no line breaks."""
    return b"data: " + data + b"\n\n"


def stream_start(headers: Mapping[str, str]) -> Message:
    """The ASGI message that a stream begins with."""
    lines = {"content-type": "text/event-stream; charset=utf-8", **headers}
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
    }


def stream_part(data: bytes, *, more: bool = True) -> Message:
    """The ASGI message for a piece of a stream; ``more`` is False with the last."""
    return {"type": "http.response.body", "body": data, "more_body": more}
