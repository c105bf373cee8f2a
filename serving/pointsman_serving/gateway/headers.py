"""Request headers: which are read, which are passed on, and to whom."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pointsman_serving.gateway.openai import BadRequestError, invalid_request
from pointsman_serving.routing.types import ReplicaKey

Header = tuple[bytes, bytes]

# Characters of a fairness id that tell it from others.
_FAIRNESS_ID_LENGTH = 128

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)

# Written by the gateway itself, meant for it alone, or with a meaning of its own inside a
# replica (Ray Serve reads the last two), so never passed on from outside. accept-encoding goes
# because a compressed stream cannot be cut at its events.
_NOT_TO_REPLICAS = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"authorization",
    b"api-key",
    b"x-api-key",
    b"cookie",
    b"accept-encoding",
    b"x-request-id",
    b"endpoint-load-metrics-format",
    b"x-gateway-destination-endpoint",
    b"x-pointsman-pool",
    b"x-pointsman-replica",
    b"x-pointsman-revision",
    b"x-pointsman-progress",
    b"x-pointsman-token",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
}

# A third party gets no more than it needs: nothing of the client's network, session or tenant.
_TO_EXTERNAL = frozenset(
    {b"content-type", b"accept", b"user-agent", b"traceparent", b"tracestate", b"openai-beta"}
)

# Headers of a reply that the gateway writes itself.
_NOT_TO_CLIENTS = HOP_BY_HOP | {
    b"content-length",
    b"x-request-id",
    b"x-pointsman-pool",
    b"x-pointsman-replica",
    b"x-pointsman-instance",
    b"x-pointsman-revision",
    b"x-pointsman-kv-events",
    b"endpoint-load-metrics",
}


# What of a third party's reply is for our clients: nothing that sets state for the gateway's own
# name, such as cookies or HSTS, or that leads elsewhere.
_FROM_EXTERNAL = frozenset(
    {
        b"content-type",
        b"content-encoding",
        b"cache-control",
        b"date",
        b"retry-after",
        b"openai-model",
        b"openai-processing-ms",
        b"openai-version",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHeaders:
    """What the headers of one request say."""

    request_id: str
    headers: dict[str, str]
    """Lower-case names; of repeated ones the last."""
    tenant: str
    """A digest of the client's credential; empty without one."""
    fairness_id: str
    """Whose share of the queue the request takes: what the header says, else the tenant."""
    conversation: str
    task: str
    ttft_slo_seconds: float | None
    raw: Sequence[Header]

    def to_replica(self) -> bytes:
        """The header lines for one of our own replicas."""
        dropped = _NOT_TO_REPLICAS | _named_by_connection(self.raw)
        return _lines(self.request_id, (pair for pair in self.raw if pair[0] not in dropped))

    def to_external(self) -> bytes:
        """The header lines for somebody else's endpoint; its key is not among them."""
        return _lines(self.request_id, (pair for pair in self.raw if pair[0] in _TO_EXTERNAL))


def request_id_of(raw: Iterable[Header], new_id: Callable[[], str]) -> str:
    """The client's x-request-id where it is 1 to 128 visible ASCII characters, else a new one."""
    for name, value in raw:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return new_id()


def parse_headers(
    raw: Sequence[Header], request_id: str, *, trust_fairness: bool = False
) -> RequestHeaders:
    """Read a request's headers.

    Args:
        trust_fairness: whoever sends may say in whose share of the queue it waits.

    Raises:
        BadRequestError: a header of the gateway's own has an impossible value.
    """
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    credential = headers.get("authorization")
    tenant = _tenant(credential) if credential else ""
    fairness_id = tenant
    if trust_fairness:
        fairness_id = headers.get("x-llm-d-inference-fairness-id") or tenant
    return RequestHeaders(
        request_id=request_id,
        headers=headers,
        tenant=tenant,
        fairness_id=fairness_id[:_FAIRNESS_ID_LENGTH],
        conversation=headers.get("x-session-id") or headers.get("x_session_id") or "",
        task=headers.get("x-pointsman-task") or "Default",
        ttft_slo_seconds=_ttft_slo(headers.get("x-llm-d-slo-ttft-ms")),
        raw=raw,
    )


def reply_lines(raw: Sequence[Header], *, external: bool = False) -> bytes:
    """A replica's reply headers as lines for the client, without those the gateway writes.

    Args:
        external: it is somebody else's reply, of which little is passed on.
    """
    dropped = _named_by_connection(raw)
    return b"".join(
        [
            name + b": " + value + b"\r\n"
            for name, value in raw
            if name not in _NOT_TO_CLIENTS
            and name not in dropped
            and (not external or name in _FROM_EXTERNAL or name.startswith(b"x-ratelimit-"))
        ]
    )


def routed_lines(request_id: str, key: ReplicaKey | None) -> bytes:
    """What the gateway adds to a reply: the request's id, and where it went once that is known."""
    lines = f"x-request-id: {request_id}\r\n"
    if key is not None:
        lines += f"x-pointsman-pool: {key.pool}\r\nx-pointsman-replica: {key.replica}\r\n"
    return lines.encode("ascii", "replace")


@functools.lru_cache(maxsize=4096)
def _tenant(credential: str) -> str:
    return hashlib.blake2b(credential.encode(), digest_size=16).hexdigest()


def _ttft_slo(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if not (math.isfinite(milliseconds) and milliseconds > 0):
        raise BadRequestError(
            invalid_request(
                f"The header x-llm-d-slo-ttft-ms is {value[:50]!r}; it must be a positive number "
                "of milliseconds.",
                code="invalid_header",
            )
        )
    return milliseconds / 1000


def _named_by_connection(raw: Sequence[Header]) -> frozenset[bytes]:
    named: frozenset[bytes] = frozenset()
    for name, value in raw:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            named |= {token.strip().lower() for token in value.split(b",")}
    return named


def _lines(request_id: str, pairs: Iterable[Header]) -> bytes:
    lines = [name + b": " + value + b"\r\n" for name, value in pairs]
    lines.append(
        b"x-request-id: "
        + request_id.encode("ascii")
        + b"\r\nendpoint-load-metrics-format: JSON\r\n"
    )
    return b"".join(lines)
