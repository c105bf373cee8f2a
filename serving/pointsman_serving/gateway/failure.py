"""Why a replica did not answer, or not to the end."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from pointsman_serving.gateway import openai
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.reply_head import ReplyHead
from pointsman_serving.gateway.sse import StreamError

log = structlog.get_logger(__name__)

# Characters of a replica's own message that are passed on.
_ERROR_SHOWN = 2000

CONNECT = "connect"
REVISION = "revision"
STALLED = "stalled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How one attempt failed."""

    label: str
    """What retries are counted under."""
    reason: str
    """For people."""
    error: ApiError | None = None
    """What the client gets if this was the last attempt; None: that no replica answered."""
    eject: bool = True
    """Whether it is the replica's fault."""
    gone: bool = False
    """Whether the replica surely works on it no more: trying again adds no load."""

    @property
    def unconnected(self) -> bool:
        """Whether the request was sent to nobody."""
        return self.label == CONNECT

    def in_stream(self, why: str = "") -> ApiError:
        """What the client gets if a stream ends by it; ``why``: it cannot be continued."""
        reason = f"{self.reason}; it is not continued: {why}" if why else self.reason
        return openai.stream_broken(reason, status=502 if self.error is None else self.error.status)


def no_connection(reason: str) -> Failure:
    """The replica could not be connected to."""
    return Failure(label=CONNECT, reason=reason, gone=True)


def no_descriptor(reason: str) -> Failure:
    """The gateway could connect to nobody.

    It counts as an attempt and against the retry budget: others most likely fail by it too.
    """
    return Failure(label="no_descriptor", reason=reason, eject=False)


def refusal_in_stream(error: StreamError) -> ApiError:
    """The answer to a request with which the replica found fault in its stream."""
    message = str(error.message)[:_ERROR_SHOWN]
    kind = error.type if isinstance(error.type, str) else "invalid_request_error"
    code = error.code if isinstance(error.code, str) else None
    return openai.upstream_refusal(error.status, message, kind=kind, code=code)


class Judge:
    """Tells the failures among one attempt's answers.

    Args:
        pool: where it is sent.
        external: that is somebody else's endpoint.
        number: which attempt it is, from 1.
        retry_after_seconds: where the replica does not say when to come back.
        resumes: it goes on with a stream that has begun.
        last: no other attempt may follow, so that there is no hurry.
    """

    __slots__ = ("_number", "_pool", "_resumes", "_retry_after_seconds", "external", "hurries")

    def __init__(
        self,
        *,
        pool: str,
        external: bool,
        number: int,
        retry_after_seconds: int,
        resumes: bool,
        last: bool,
    ) -> None:
        self._pool = pool
        self._number = number
        self._retry_after_seconds = retry_after_seconds
        self._resumes = resumes
        self.hurries = resumes and not last
        """Whether the client is in the middle of a stream and others could go on with it."""
        self.external = external

    def of_head(self, head: ReplyHead) -> Failure | None:
        """The failure that a reply is by its beginning."""
        if head.status < 300:
            if self._resumes and not head.streams:
                return Failure(label="seam", reason="it answered without a stream", eject=False)
            return None
        refused = self._refused(head.status, head.retry_after_seconds)
        if refused is None and head.failed:
            reason = f"the replica answered {head.status}"
            return Failure(label=f"status_{head.status}", reason=reason)
        if refused is None and self._resumes:
            # It was right for the first replica: what this one does not like is the going on.
            label = REVISION if head.status == 409 else f"status_{head.status}"
            reason = f"the replica would not go on with the stream ({head.status})"
            return Failure(label=label, reason=reason, eject=False, gone=label == REVISION)
        return refused

    def of_stream(self, error: StreamError) -> Failure | None:
        """The failure that an error under status 200 is; None where it is the client's."""
        refused = self._refused(error.status, None)
        if refused is None and error.status >= 500:
            message = str(error.message)[:_ERROR_SHOWN]
            return Failure(label="error_event", reason=f"the replica failed ({message})")
        return refused

    def late(self, limit_seconds: float) -> Failure:
        """The failure of a replica that has not sent a first token in time."""
        reason = f"no first token within {limit_seconds:g} s"
        error = openai.upstream_timeout(reason, attempts=self._number)
        return Failure(label="first_token_timeout", reason=reason, error=error)

    def _refused(self, status: int, retry_after_seconds: int | None) -> Failure | None:
        """The failure where the replica would not answer and the client is not the reason."""
        if status == 429:
            wait = retry_after_seconds or self._retry_after_seconds
            busy = openai.upstream_busy(attempts=self._number, retry_after_seconds=wait)
            return Failure(label="status_429", reason="it answered 429", error=busy, eject=False)
        if self.external and status in (401, 403):
            refused = openai.key_refused(self._pool, status)
            log.error("a provider refused the gateway's key", pool=self._pool, status=status)
            return Failure(label=f"status_{status}", reason=refused.message, error=refused)
        if status == 401:
            # The client's own credentials never get there.
            refused = openai.token_refused(self._pool)
            log.error("a replica refused the gateway's token", pool=self._pool)
            return Failure(label="status_401", reason=refused.message, error=refused)
        return None
