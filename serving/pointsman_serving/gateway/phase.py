"""Where a request is on its way through the gateway."""

from __future__ import annotations

from enum import Enum, auto


class Phase(Enum):
    """Where a request is."""

    NEW = auto()
    QUEUED = auto()
    CONNECTING = auto()
    WAITING = auto()
    """Sent to a replica; nothing committed to the client."""
    REPLYING = auto()
    ENDED = auto()
