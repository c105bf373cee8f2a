"""Kubernetes Events about pools and policies: what ``kubectl describe`` shows."""

from __future__ import annotations

import datetime
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import structlog

from pointsman_api.labels import FIELD_MANAGER
from pointsman_kube.client import Kube
from pointsman_kube.errors import KubeError
from pointsman_kube.kinds import Object
from pointsman_operator.conditions import EventNote

log = structlog.get_logger(__name__)

_REMEMBERED = 2048
_TOLD_WHEN_FINE = frozenset({"Accepted", "Progressing", "Ready"})
_QUIET_SECONDS = 600.0
_LONGEST = 1024
"""The API server refuses longer messages."""


def worth_telling(note: EventNote, *, first: bool) -> bool:
    """Whether a transition is an event. A pool comes up through ten of them: most say nothing new.

    Args:
        first: the object had no status before, so that nothing has changed yet.
    """
    condition = note.message.partition(" ")[0]
    if first:
        return note.type == "Warning" and condition == "Accepted"
    return note.type == "Warning" or condition in _TOLD_WHEN_FINE


def _is_ready(note: EventNote) -> bool:
    return note.type == "Normal" and note.message.startswith("Ready is True")


class EventWriter:
    """Writes Events; the same one about the same object not again within ten minutes."""

    def __init__(self, kube: Kube, *, reporter: str) -> None:
        self._kube = kube
        self._reporter = reporter
        self._written: OrderedDict[tuple[str, ...], float] = OrderedDict()

    async def write(
        self, about: Object, notes: Iterable[EventNote], *, first: bool, now: float
    ) -> None:
        """Write what is worth it. That it cannot be written harms nothing and is only logged.

        Args:
            about: the object, with ``apiVersion`` and ``kind``.
            first: it had no status before.
            now: seconds since the epoch.
        """
        telling = [note for note in notes if worth_telling(note, first=first)]
        if any(_is_ready(note) for note in telling):
            # That it is ready says all that is good about it.
            telling = [note for note in telling if note.type == "Warning" or _is_ready(note)]
        for note in telling:
            await self._write(about, note.type, note.reason, note.message, now)

    async def _write(
        self, about: Object, event_type: str, reason: str, message: str, now: float
    ) -> None:
        metadata = about["metadata"]
        known = (str(metadata.get("uid")), event_type, reason, message)
        if now - self._written.get(known, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return
        self._written[known] = now
        self._written.move_to_end(known)
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)
        event = self._event(about, event_type, reason, message[:_LONGEST], now)
        try:
            await self._kube.create(event)
        except KubeError as error:
            log.debug("event not written", reason=reason, cause=str(error))

    def _event(
        self, about: Object, event_type: str, reason: str, message: str, now: float
    ) -> dict[str, Any]:
        metadata = about["metadata"]
        at = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata.get("uid", ""),
            },
            "type": event_type,
            "reason": reason,
            "message": message,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._reporter[:128],
        }
