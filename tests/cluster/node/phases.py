"""How long each step took, told as it happens and kept for the end."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Phases:
    """A list of named steps and their seconds."""

    def __init__(self, tell: Callable[[str], None] = print) -> None:
        self.seconds: dict[str, float] = {}
        self._tell = tell

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a step."""
        started = time.monotonic()
        try:
            yield
        except BaseException:
            self._tell(f"✗ {name} after {time.monotonic() - started:.1f} s")
            raise
        self.seconds[name] = time.monotonic() - started
        self._tell(f"✓ {name}: {self.seconds[name]:.1f} s")
