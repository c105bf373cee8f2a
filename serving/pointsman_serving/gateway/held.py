"""How much memory the bodies of all requests may take together."""

from __future__ import annotations


class HeldBytes:
    """A count of bytes with a limit."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, count: int) -> bool:
        """Count more bytes; False, and nothing counted, where they would be too many."""
        if self.held + count > self.limit:
            return False
        self.held += count
        return True

    def give_back(self, count: int) -> None:
        """Count bytes that are held no more."""
        self.held -= count
