"""The beginning of a replica's reply."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman_serving.gateway.headers import Header
from pointsman_serving.gateway.reading import Reading, StreamReading, WholeReading
from pointsman_serving.gateway.said import Said


class ReplyHead:
    """Status and headers, and what follows from them.

    Args:
        headers: names in lower case.
    """

    __slots__ = (
        "headers",
        "instance",
        "kv_events",
        "load_report",
        "retry_after_seconds",
        "revision",
        "status",
        "streams",
    )

    def __init__(self, status: int, headers: Sequence[Header]) -> None:
        self.status = status
        self.headers = headers
        self.load_report: bytes | None = None
        """The value of endpoint-load-metrics."""
        self.retry_after_seconds: int | None = None
        self.revision = ""
        """Which model, arguments and engine made it; empty where the replica does not say."""
        self.instance = ""
        """Which start of the replica made it; empty where it does not say."""
        self.kv_events = b""
        """Where the replica publishes its KV cache events; empty where it does not."""
        content_type = encoding = b""
        for name, value in headers:
            if name == b"content-type":
                content_type = value
            elif name == b"content-encoding":
                encoding = value
            elif name == b"endpoint-load-metrics":
                self.load_report = value
            elif name == b"x-pointsman-revision":
                self.revision = value.decode("latin-1")
            elif name == b"x-pointsman-instance":
                self.instance = value.decode("latin-1")
            elif name == b"x-pointsman-kv-events":
                self.kv_events = value
            elif name == b"retry-after" and value.isdigit() and len(value) < 6:
                self.retry_after_seconds = int(value)
        # What is compressed cannot be cut at its events.
        self.streams = (
            status < 300 and content_type.startswith(b"text/event-stream") and not encoding
        )

    @property
    def failed(self) -> bool:
        """Whether the replica could not answer; 501 is about the request, not about it.

        A redirection is no answer either: its target is not what the pool was set up with.
        """
        status = self.status
        return (status >= 500 and status != 501) or 300 <= status < 400

    def reading(self, *, hide_usage: bool, said: Said | None) -> Reading:
        """How to read the body.

        Args:
            hide_usage: leave out a stream's usage event.
            said: notes what of a stream is passed on; None where it is not to be continued.
        """
        if self.streams:
            return StreamReading(hide_usage=hide_usage, said=said)
        return WholeReading(self.status, self.headers)
