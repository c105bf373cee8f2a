"""What goes wrong when a program of the test cluster is looked for."""

from __future__ import annotations


class BinaryMissingError(RuntimeError):
    """A program is neither there nor can it be made; the message says what to do."""
