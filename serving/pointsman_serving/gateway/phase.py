"""Where a request is on its way through the gateway."""

from __future__ import annotations

from enum import Enum, auto


class Phase(Enum):
    """Where a request is."""

    NEW = auto()
    QUEUED = auto()
    SENT = auto()
    """With a replica, which has sent nothing yet that is for the client."""
    REPLYING = auto()
    ENDED = auto()


class LegPhase(Enum):
    """Where one attempt at a request is."""

    CONNECTING = auto()
    WAITING = auto()
    """Sent; nothing of use has come."""
    REPLYING = auto()
    ENDED = auto()
