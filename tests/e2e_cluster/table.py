"""The stories with what they measured, printed at the end and written as JSON where asked.

What a story promises it asserts. How fast it should be is a goal: machines are shared, so a goal
that was missed is printed as missed, and fails its story only where ``POINTSMAN_E2E_GOALS`` is set.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


GOALS_VARIABLE = "POINTSMAN_E2E_GOALS"
"""Set to anything: a goal that is missed fails its story."""


@dataclass(slots=True)
class Row:
    """One story."""

    story: str
    seconds: float = 0.0
    passed: bool = False
    measured: list[str] = field(default_factory=list)
    goals_met: int = 0
    goals_missed: int = 0

    def note(self, text: str) -> None:
        """Add what was measured."""
        self.measured.append(text)

    def goal(self, what: str, value: float, at_most: float, unit: str = "s") -> None:
        """Add a measured number with the most that it should be.

        Raises:
            AssertionError: it is more, and ``POINTSMAN_E2E_GOALS`` is set.
        """
        text = f"{what} {value:.2f} {unit} (goal: {at_most:g})"
        if value <= at_most:
            self.measured.append(text)
            self.goals_met += 1
            return
        self.measured.append(f"{text} MISSED")
        self.goals_missed += 1
        if os.environ.get(GOALS_VARIABLE):
            raise AssertionError(f"{self.story}: {text}")


class StoryTable:
    """Rows in the order in which the stories ran."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @contextmanager
    def story(self, name: str) -> Iterator[Row]:
        """Time a story."""
        row = Row(story=name)
        self.rows.append(row)
        started = time.monotonic()
        try:
            yield row
            row.passed = True
        finally:
            row.seconds = time.monotonic() - started

    def __str__(self) -> str:
        width = max((len(row.story) for row in self.rows), default=0)
        lines = [f"  {'story':<{width}}  {'s':>6}  what was measured"]
        for row in self.rows:
            mark = "✓" if row.passed else "✗"
            told = "; ".join(row.measured)
            lines.append(f"{mark} {row.story:<{width}}  {row.seconds:>6.1f}  {told}")
        met = sum(row.goals_met for row in self.rows)
        missed = sum(row.goals_missed for row in self.rows)
        passed = sum(row.passed for row in self.rows)
        lines.append(f"{passed} of {len(self.rows)} stories, {met} of {met + missed} goals met")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Keep the rows as JSON."""
        path.write_text(json.dumps([asdict(row) for row in self.rows], indent=2) + "\n")


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.4999) - 1))]
