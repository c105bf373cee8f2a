"""When a process of this host began, to tell it from a later one with the same id."""

from __future__ import annotations

from pathlib import Path

# Fields of /proc/PID/stat after the name, which may have spaces and brackets of its own.
_STATE, _START_TICKS = 0, 19
_ENDED = ("Z", "X")


def process_start(pid: int) -> str | None:
    """Clock ticks between the machine's start and the process's; None: it does not live."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()
    return None if fields[_STATE] in _ENDED else fields[_START_TICKS]
