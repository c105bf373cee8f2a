"""What can go wrong between us and the API server, as few types as callers tell apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


class KubeError(Exception):
    """A call to the API server failed.

    Args:
        message: what was asked and what the server said.
        status: the HTTP status; 0 where no answer came.
        reason: the server's one-word reason, such as ``AlreadyExists``.
        retry_after_seconds: how long the server asks to wait; 0 where it does not say.
    """

    def __init__(
        self, message: str, *, status: int = 0, reason: str = "", retry_after_seconds: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class NotFound(KubeError):  # noqa: N818
    """The object does not exist, or its namespace does not."""


class KindNotServed(KubeError):  # noqa: N818
    """The API server does not know the kind: its CRD is not installed."""


class Conflict(KubeError):  # noqa: N818
    """Somebody else changed the object, owns a field of it, or has made it already."""


class Gone(KubeError):  # noqa: N818
    """The resource version is too old to go on from: list again."""


class Forbidden(KubeError):  # noqa: N818
    """Our account may not do this (RBAC, admission), or is not known."""


class Invalid(KubeError):  # noqa: N818
    """The server refuses what was sent; the same again would fail again."""


class Unavailable(KubeError):  # noqa: N818
    """No answer, or one that asks to try later."""


class Garbled(KubeError):  # noqa: N818
    """Something answered, but not as an API server does: a proxy before it, or a broken line."""


class Fenced(KubeError):  # noqa: N818
    """We did not send it: this process no longer has the right to write."""


def error_of(*, asked: str, status: int, body: bytes, headers: Mapping[str, str]) -> KubeError:
    """The error that an answer with a status of 400 and above means.

    Args:
        asked: what was asked, for the message: ``get secrets default/key``.
    """
    said = _status_object(body)
    message = str(said.get("message") or body[:300].decode("utf-8", "replace").strip() or "no text")
    reason = str(said.get("reason") or "")
    error = _type_of(status, reason, said)
    return error(
        f"{asked}: {status} {message}",
        status=status,
        reason=reason,
        retry_after_seconds=_retry_after_seconds(headers, said),
    )


def _type_of(status: int, reason: str, said: Mapping[str, object]) -> type[KubeError]:
    if status == 404:
        # An unknown kind is answered in plain text, or with a Status that names no object.
        details = said.get("details")
        names_object = isinstance(details, Mapping) and bool(details.get("name"))
        return NotFound if names_object else KindNotServed
    if status == 409:
        return Conflict
    if status == 410 or reason in ("Expired", "Gone"):
        return Gone
    if status in (401, 403):
        return Forbidden
    if status in (408, 429) or status >= 500:
        return Unavailable
    return Invalid


def _status_object(body: bytes) -> Mapping[str, object]:
    try:
        said = json.loads(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) and said.get("kind") == "Status" else {}


def _retry_after_seconds(headers: Mapping[str, str], said: Mapping[str, object]) -> float:
    details = said.get("details")
    told = details.get("retryAfterSeconds") if isinstance(details, Mapping) else None
    for value in (headers.get("Retry-After"), told):
        try:
            seconds = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return 0.0
