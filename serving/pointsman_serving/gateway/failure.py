"""Why a replica did not answer."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman_serving.gateway import openai
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.sse import StreamError

# Characters of a replica's own message that are passed on.
_ERROR_SHOWN = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How one attempt failed before anything was committed to the client."""

    label: str
    """What retries are counted under."""
    reason: str
    """For people."""
    error: ApiError | None = None
    """What the client gets if this was the last attempt; None: that no replica answered."""
    eject: bool = True
    """Whether it is the replica's fault."""

    @property
    def unconnected(self) -> bool:
        """Whether the request was sent to nobody."""
        return self.label == "connect"


def no_connection(reason: str) -> Failure:
    """The replica could not be connected to."""
    return Failure(label="connect", reason=reason)


def error_event(error: StreamError) -> Failure:
    """The replica's stream began with an error of its own."""
    message = str(error.message)[:_ERROR_SHOWN]
    return Failure(label="error_event", reason=f"the replica failed ({message})")


def refusal_in_stream(error: StreamError) -> ApiError:
    """The answer to a request with which the replica found fault in its stream."""
    message = str(error.message)[:_ERROR_SHOWN]
    kind = error.type if isinstance(error.type, str) else "invalid_request_error"
    code = error.code if isinstance(error.code, str) else None
    return openai.upstream_refusal(error.status, message, kind=kind, code=code)
