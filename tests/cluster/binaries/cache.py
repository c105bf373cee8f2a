"""Where built programs are kept, outside the checkout, and the lock that lets one process build."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/pointsman/cluster``, with ``~/.cache`` where the variable is not set."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pointsman" / "cluster"


def say(text: str) -> None:
    """Tell on stderr what takes its time: stdout is for the paths."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Hold a lock of this machine's user; say so when another process has it."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another process that builds the test cluster's programs")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
