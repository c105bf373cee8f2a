"""The error objects of OpenAI's API: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from pointsman_serving.routing.types import Decision, Outcome

_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiError:
    """An answer that is an error: its status, its object and when to come back."""

    status: int
    message: str
    code: str
    type: str = "invalid_request_error"
    param: str | None = None
    retry_after_seconds: int | None = None

    def content(self) -> dict[str, dict[str, str | None]]:
        """The object that clients decode."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def body(self) -> bytes:
        """The JSON body of an answer that has not begun."""
        return msgspec.json.encode(self.content())

    def event(self) -> bytes:
        """What ends a stream that has begun: the error event, then ``[DONE]``."""
        return b"data: " + self.body() + b"\n\ndata: [DONE]\n\n"


class BadRequestError(ValueError):
    """A request that is refused before it is routed."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


def unknown_model(model: str, names: Iterable[str]) -> ApiError:
    """404 that lists the names that exist."""
    known = sorted(names)
    listed = ", ".join(known[:_NAMES_SHOWN]) or "none yet"
    more = f" and {len(known) - _NAMES_SHOWN} more" if len(known) > _NAMES_SHOWN else ""
    return ApiError(
        status=404,
        message=f"The model {model[:200]!r} does not exist; there are: {listed}{more}.",
        code="model_not_found",
        param="model",
    )


def body_too_large(limit_bytes: int) -> ApiError:
    """413."""
    return ApiError(
        status=413,
        message=f"The request body is longer than {limit_bytes} bytes, the limit of this gateway.",
        code="request_too_large",
    )


def invalid_request(message: str, *, param: str | None = None, code: str) -> ApiError:
    """400 with a sentence that says what is wrong and what is allowed."""
    return ApiError(status=400, message=message, param=param, code=code)


def nested_too_deeply() -> ApiError:
    """400: the body's arrays or objects are nested beyond what can be read."""
    return invalid_request(
        "The request body is not valid JSON: it is nested too deeply.", code="invalid_json"
    )


def reserved_argument() -> ApiError:
    """400: the client speaks the words of the gateway to its replicas."""
    return invalid_request(
        "vllm_xargs.pointsman_continue is the gateway's own; leave it out. To continue a text, end "
        "the messages with it and set continue_final_message.",
        param="vllm_xargs",
        code="reserved_argument",
    )


def read_timeout(seconds: float) -> ApiError:
    """408: the request did not come."""
    return ApiError(
        status=408,
        message=f"The request did not come in full: the limit of {seconds:g} s has passed.",
        code="request_timeout",
    )


def bodies_full(retry_after_seconds: int) -> ApiError:
    """503: the bodies of all requests together take as much memory as they may."""
    return ApiError(
        status=503,
        message="The gateway holds as many request bodies as it may. Retry later.",
        type="server_error",
        code="gateway_overloaded",
        retry_after_seconds=retry_after_seconds,
    )


def key_unreadable(pools: Iterable[str], retry_after_seconds: int) -> ApiError:
    """503: the operator's mistake; where the key should be is for the log, not for clients."""
    return ApiError(
        status=503,
        message=(
            f"The gateway has no usable address or API key for {', '.join(pools)}. This is its "
            "operator's to mend: the gateway's log names the cause."
        ),
        type="server_error",
        code="pool_misconfigured",
        retry_after_seconds=retry_after_seconds,
    )


def key_refused(pool: str, status: int) -> ApiError:
    """502: a provider does not take the gateway's key; the client's has nothing to do with it."""
    return ApiError(
        status=502,
        message=(
            f"The provider of the pool {pool} refused the gateway's own API key ({status}). The "
            "key of this request is not at fault; the gateway's operator must renew the pool's."
        ),
        type="server_error",
        code="upstream_key_refused",
    )


def token_refused(pool: str) -> ApiError:
    """502: a replica wants a token that the gateway does not have; the client cannot have it."""
    return ApiError(
        status=502,
        message=(
            f"A replica of the pool {pool} refused the gateway's own requests (401). This request "
            "is not at fault; the gateway's operator must mend the pool's token."
        ),
        type="server_error",
        code="replica_token_refused",
    )


def upstream_refusal(status: int, message: str, *, kind: str, code: str | None) -> ApiError:
    """A replica's own refusal of the request, which it wrote as the first event of a stream."""
    return ApiError(status=status, message=message, type=kind, code=code or "invalid_request")


def queue_full(limit: int, retry_after_seconds: float) -> ApiError:
    """429: the rule's queue holds as many requests as it may."""
    return ApiError(
        status=429,
        message=f"Every replica is busy and the queue of {limit} requests is full. Retry later.",
        type="rate_limit_error",
        code="queue_full",
        retry_after_seconds=_whole_seconds(retry_after_seconds),
    )


def pushed_out(retry_after_seconds: float) -> ApiError:
    """429: the queue is full, and the place is another's now."""
    return ApiError(
        status=429,
        message=(
            "The queue is full and this request's place went to one of a higher priority, or of a "
            "tenant with fewer requests in it. Retry later."
        ),
        type="rate_limit_error",
        code="queue_full",
        retry_after_seconds=_whole_seconds(retry_after_seconds),
    )


def queue_too_long(limit_seconds: float, wait_seconds: float) -> ApiError:
    """429: the queue would not come to this request within the rule's time."""
    return ApiError(
        status=429,
        message=(
            f"The queue is about {wait_seconds:.0f} s long and requests wait for at most "
            f"{limit_seconds:g} s. Retry later."
        ),
        type="rate_limit_error",
        code="queue_too_long",
        retry_after_seconds=_whole_seconds(min(wait_seconds, max(limit_seconds, 1.0))),
    )


def objective_unreachable(retry_after_seconds: float) -> ApiError:
    """429: the first token would come later than it is wanted, and the rule rejects such."""
    return ApiError(
        status=429,
        message=(
            "The request would wait longer in the queue than its first token may take. Retry later."
        ),
        type="rate_limit_error",
        code="objective_unreachable",
        retry_after_seconds=_whole_seconds(retry_after_seconds),
    )


def no_replica_came(
    pools: Iterable[str], limit_seconds: float, retry_after_seconds: float
) -> ApiError:
    """503: the request was held for a replica, and none started within the rule's time."""
    return ApiError(
        status=503,
        message=(
            f"No replica of {', '.join(sorted(pools))} was there within {limit_seconds:g} s, for "
            "as long as requests are held. Retry later."
        ),
        type="server_error",
        code="no_replica",
        retry_after_seconds=_whole_seconds(retry_after_seconds),
    )


def queue_timeout(limit_seconds: float, retry_after_seconds: float) -> ApiError:
    """429: no replica had room within the rule's time."""
    return ApiError(
        status=429,
        message=f"No replica had room within {limit_seconds:g} s, the queue's limit. Retry later.",
        type="rate_limit_error",
        code="queue_timeout",
        retry_after_seconds=_whole_seconds(retry_after_seconds),
    )


def upstream_failed(reason: str, *, attempts: int, retry_after_seconds: int) -> ApiError:
    """503: every attempt failed before anything was answered."""
    return ApiError(
        status=503,
        message=f"No replica could answer after {_attempts(attempts)}: {reason}. Retry later.",
        type="server_error",
        code="upstream_failed",
        retry_after_seconds=retry_after_seconds,
    )


def upstream_busy(*, attempts: int, retry_after_seconds: int) -> ApiError:
    """429: every replica that was asked answered 429."""
    return ApiError(
        status=429,
        message=f"The replicas are limiting requests ({_attempts(attempts)}). Retry later.",
        type="rate_limit_error",
        code="upstream_rate_limited",
        retry_after_seconds=retry_after_seconds,
    )


def upstream_timeout(reason: str, *, attempts: int) -> ApiError:
    """504: time ran out before anything was answered."""
    return ApiError(
        status=504,
        message=f"No answer in time after {_attempts(attempts)}: {reason}.",
        type="server_error",
        code="upstream_timeout",
    )


def stream_broken(reason: str, *, status: int = 502) -> ApiError:
    """The error event of a stream that cannot go on; nobody sees its status but the counts."""
    return ApiError(
        status=status,
        message=f"The stream broke before its end: {reason}. What was received is incomplete.",
        type="server_error",
        code="stream_broken",
    )


def shutting_down() -> ApiError:
    """The gateway ends before the reply does."""
    return ApiError(
        status=503,
        message="The gateway is stopping and could not wait any longer for this request to end.",
        type="server_error",
        code="gateway_stopping",
        retry_after_seconds=1,
    )


def internal_error() -> ApiError:
    """500: a fault of the gateway itself; its log has the cause."""
    return ApiError(
        status=500,
        message="The gateway failed on this request; its log names the cause.",
        type="server_error",
        code="internal_error",
    )


def refusal(
    decision: Decision, *, model: str, names: Iterable[str], retry_after_seconds: int
) -> ApiError:
    """The error for a decision that chose nothing and does not wait."""
    match decision.outcome:
        case Outcome.NO_MODEL:
            return unknown_model(model, names)
        case Outcome.NO_RULE:
            return ApiError(status=404, message=decision.reason, code="no_matching_rule")
        case Outcome.TOO_LONG:
            return ApiError(
                status=400,
                message=decision.reason,
                param="messages",
                code="context_length_exceeded",
            )
        case Outcome.API_NOT_SERVED:
            return ApiError(
                status=404, message=decision.reason, param="model", code="api_not_served"
            )
        case Outcome.HOPELESS:
            return ApiError(
                status=429,
                message=decision.reason,
                type="rate_limit_error",
                code="objective_unreachable",
                retry_after_seconds=retry_after_seconds,
            )
        case _:
            return ApiError(
                status=503,
                message=decision.reason,
                type="server_error",
                code="no_replica",
                retry_after_seconds=retry_after_seconds,
            )


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _attempts(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"
