"""The client's side of an exchange, as the relay sees it."""

from __future__ import annotations

from typing import Protocol

from pointsman_serving.gateway.openai import ApiError


class ClientReply(Protocol):
    """The client's side of an exchange."""

    @property
    def paused(self) -> bool:
        """Whether the client reads more slowly than data comes."""

    def start(
        self, status: int, lines: bytes, *, length: int | None, body: bytes, last: bool
    ) -> None:
        """Commit: status line, header lines, framing and the first bytes.

        Args:
            length: bytes of the whole body; None where it is not known yet.
            last: ``body`` is all of it.
        """

    def release(self) -> None:
        """The request's body is needed no more, or is counted elsewhere."""

    def send(self, data: bytes) -> None:
        """More of the body."""

    def end(self) -> None:
        """The body is whole."""

    def abort(self) -> None:
        """Cut the connection, so that the client sees that the reply is not whole."""


def send_error(reply: ClientReply, error: ApiError, lines: bytes) -> None:
    """Answer with an error object; ``lines`` are further header lines."""
    body = error.body()
    lines += b"content-type: application/json\r\n"
    if error.retry_after_seconds is not None:
        lines += b"retry-after: %d\r\n" % error.retry_after_seconds
    reply.start(error.status, lines, length=len(body), body=body, last=True)
