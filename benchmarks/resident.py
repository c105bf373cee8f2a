"""How much memory a process holds, over time, and whether it has stopped growing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, of this one by default."""
    fields = Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()
    return int(fields[1]) * _PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Sample:
    """A reading."""

    requests: int
    seconds: float
    resident_mib: float


def growth_percent(samples: list[Sample]) -> float:
    """By how much the last half grew: the mean of its last quarter against that of its first.

    Means over many readings, because single ones go up and down with what is in flight.

    Raises:
        ValueError: fewer than 16 readings.
    """
    if len(samples) < 16:
        raise ValueError(f"{len(samples)} readings; at least 16 are needed to tell growth")
    half = [sample.resident_mib for sample in samples[len(samples) // 2 :]]
    quarter = len(half) // 4
    first, last = sum(half[:quarter]) / quarter, sum(half[-quarter:]) / quarter
    return (last / first - 1.0) * 100.0
