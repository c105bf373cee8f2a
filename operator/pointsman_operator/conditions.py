"""Conditions as documents: the time of a transition stays until the status changes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman_api.conditions import Reason
from pointsman_operator.times import timestamp

_LONGEST_MESSAGE = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One condition before it has a time."""

    type: str
    status: bool | None
    """None: unknown."""
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventNote:
    """A Kubernetes Event to write about a transition."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


def condition_documents(
    said: Iterable[Said],
    before: Iterable[Mapping[str, Any]],
    *,
    generation: int,
    now: float,
) -> list[dict[str, Any]]:
    """The conditions of a status, in the order given.

    Args:
        before: the conditions of the status that is replaced.
        generation: of the object that they are about.
        now: the time of a transition, in seconds since the epoch.
    """
    old = {str(item.get("type")): item for item in before}
    documents = []
    for item in said:
        status = _STATUS[item.status]
        previous = old.get(item.type, {})
        kept = previous.get("lastTransitionTime") if previous.get("status") == status else None
        documents.append(
            {
                "type": item.type,
                "status": status,
                "reason": item.reason.value,
                "message": _bounded(item.message),
                "lastTransitionTime": kept or timestamp(now),
                "observedGeneration": generation,
            }
        )
    return documents


def condition_of(status: Mapping[str, Any] | None, kind: str) -> Mapping[str, Any]:
    """One condition of a status document; empty where it has none."""
    for item in (status or {}).get("conditions") or ():
        if item.get("type") == kind:
            found: Mapping[str, Any] = item
            return found
    return {}


def transition_events(
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
    *,
    told: Sequence[str],
    good_when_false: frozenset[Reason] = frozenset(),
) -> tuple[EventNote, ...]:
    """What happened between two statuses, one event for each condition that says another thing.

    Args:
        told: the condition types that are worth an event, in the order of the events.
        good_when_false: reasons of a condition that is False though nothing is wrong.
    """
    events = []
    for kind in told:
        old, new = condition_of(before, kind), condition_of(after, kind)
        if not new or (old.get("status"), old.get("reason")) == (new["status"], new["reason"]):
            continue
        if new["status"] == "Unknown" or (
            not old and new["status"] == "False" and not new["message"]
        ):
            continue
        if old.get("status") == new["status"] and new["reason"] in _WAITING:
            # Still not, and on its way.
            continue
        fine = new["status"] == "True" or new["reason"] in good_when_false
        events.append(
            EventNote(
                type="Normal" if fine else "Warning",
                reason=str(new["reason"]),
                message=f"{kind} is {new['status']}: {new['message']}",
            )
        )
    return tuple(events)


_WAITING = frozenset({Reason.REPLICAS_NOT_READY, Reason.GATEWAYS_NOT_READY})
_STATUS = {True: "True", False: "False", None: "Unknown"}


def _bounded(message: str) -> str:
    # A sentence begins with a capital letter, a field's path as it is written.
    is_word = message.partition(" ")[0].isalpha()
    text = message[:1].upper() + message[1:] if is_word else message
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[: _LONGEST_MESSAGE - 1]}…"
