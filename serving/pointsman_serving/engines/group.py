"""A replica that spreads over several hosts: its processes live and end as one.

The first process is the replica that Ray Serve knows and that answers requests. Each other host has
a member, which holds the host's share of the GPUs. The first asks every member for a sign of life,
and tells it with the same words whether the replica has open requests: so the end of any pod of the
replica is held back until they are done. Where a member is lost, no part of the model can answer.
Nothing here knows Ray.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BEAT_SECONDS = 0.5
"""Between two questions to a member."""
SILENT_SECONDS = 30.0
"""A member that lives and says nothing for longer is lost. While it loads a model it may be silent
for seconds; the death of its process is told at once."""


class MemberLostError(RuntimeError):
    """A member will never answer again; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlace:
    """One process's place in its group."""

    rank: int
    """0: the process that answers requests."""
    hosts: int
    """Processes of the group."""
    leader_host: str
    """Address of rank 0."""
    leader_port: int
    """A port of rank 0 where the engine's processes may meet."""


class Member(Protocol):
    """A process of the group on another host, as the first process sees it."""

    @property
    def name(self) -> str:
        """For messages: which one, and where."""

    def beat(self, *, busy: bool) -> None:
        """Ask for a sign of life, unless one is being waited for; returns at once.

        Args:
            busy: whether the replica has open requests.
        """

    def heard(self) -> str | None:
        """What the member has said since the last call, without waiting.

        Returns:
            None: nothing. Empty: it is well. Else why its part of the engine has failed.

        Raises:
            MemberLostError: it is dead.
        """


class GroupWatch:
    """Looks after the members in a thread of its own: an engine may block the event loop.

    Args:
        busy: whether the replica has open requests.
        lost: called once with the reason when the group cannot serve any more.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        busy: Callable[[], bool],
        lost: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members = members
        self._busy = busy
        self._lost = lost
        self._clock = clock
        self._heard_at = dict.fromkeys(range(len(members)), clock())
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._run, name="replica-group", daemon=True).start()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def look(self) -> str:
        """Hear every member and ask it again.

        Returns:
            Why the group is lost; empty where it is not.
        """
        busy = self._busy()
        for index, member in enumerate(self._members):
            try:
                said = member.heard()
            except MemberLostError as error:
                return f"{member.name} is lost: {error}"
            if said:
                return f"the engine of {member.name} has failed: {said}"
            if said is not None:
                self._heard_at[index] = self._clock()
            elif self._clock() - self._heard_at[index] >= SILENT_SECONDS:
                return f"{member.name} has said nothing for {SILENT_SECONDS:.0f} s"
            member.beat(busy=busy)
        return ""

    def _run(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            reason = self.look()
            if reason:
                if not self._closed.is_set():
                    self._lost(reason)
                return
