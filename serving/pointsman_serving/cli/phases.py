"""What a long command is doing now, and how long each part took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

_LINE_SECONDS = 2.0
"""Where progress is written as lines, one comes this often at most."""


@dataclass(slots=True)
class Phases:
    """Shows phases as they run, with a spinner on terminals, and remembers how long they took."""

    console: Console
    finished: list[tuple[str, float]] = field(default_factory=list)
    """Name and seconds of each phase that ended well, in order."""

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a phase. The callable that is yielded replaces the text beside its name."""
        started = printed = time.monotonic()
        detail = ""
        if not self.console.is_terminal:
            self.console.print(f"… {name}")
        with self.console.status(name) as status:

            def show(text: str) -> None:
                nonlocal detail, printed
                if text == detail:
                    return
                detail = text
                now = time.monotonic()
                if self.console.is_terminal:
                    status.update(f"{name}: {text}")
                elif now - printed > _LINE_SECONDS:
                    printed = now
                    self.console.print(f"  {name}: {text} ({now - started:.0f} s)")

            yield show
        seconds = time.monotonic() - started
        self.finished.append((name, seconds))
        tail = f": {detail}" if detail else ""
        self.console.print(f"[green]✓[/green] {name}{tail} [dim]{seconds:.1f} s[/dim]")

    def record(self, name: str, seconds: float) -> None:
        """Add a phase that somebody else timed."""
        self.finished.append((name, seconds))

    def table(self) -> Table:
        """All phases with their seconds and the sum."""
        table = Table("phase", "seconds", title="Where the time went")
        table.columns[1].justify = "right"
        for name, seconds in self.finished:
            table.add_row(name, f"{seconds:.1f}")
        table.add_section()
        table.add_row("total", f"{sum(seconds for _, seconds in self.finished):.1f}")
        return table
