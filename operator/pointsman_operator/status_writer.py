"""Writes a status when it says something else than before, and tells the transition as Events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pointsman_kube.client import Kube
from pointsman_kube.errors import NotFound
from pointsman_kube.kinds import Object
from pointsman_operator.conditions import EventNote
from pointsman_operator.events import EventWriter
from pointsman_operator.objects import canonical

EventsBetween = Callable[[Mapping[str, Any] | None, Mapping[str, Any]], Iterable[EventNote]]


class StatusWriter:
    """Writes the statuses of one kind.

    Args:
        events_between: the Events to write when one status replaces another.
        took: told the object as the API server has it after the write.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        kube: Kube,
        events: EventWriter,
        *,
        events_between: EventsBetween,
        took: Callable[[Object], None],
        now: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._events = events
        self._events_between = events_between
        self._took = took
        self._now = now

    async def write(self, raw: Object, status: Mapping[str, Any]) -> None:
        """Make this the status of an object; an equal one is not written.

        Args:
            raw: the object as it is.
        """
        before = raw.get("status")
        if before is not None and canonical(before) == canonical(status):
            return
        try:
            written = await self._kube.apply_status({**raw, "status": status})
        except NotFound:
            # Deleted in this moment: its event is on the way.
            return
        self._took(written)
        notes = self._events_between(before, status)
        await self._events.write(raw, notes, first=before is None, now=self._now())
