"""Runs a program and ends everything it started: ``python -m pointsman_serving.cluster.guard CMD``.

Ray starts a dozen daemons, they start workers, workers start engines, and most of them leave
their parent's process group. The guard adopts every descendant whose parent dies, so it can find
and end them all. It ends them when its standard input closes (whoever holds the other end is
gone, however it went), on SIGTERM, or when the program itself ends.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_SECONDS = 3.0
"""Between SIGTERM and SIGKILL."""
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run the command until it ends or the guard is told to stop; its exit status, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")

    stop = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    program = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        # The guard itself may be killed: then the program at least gets SIGTERM.
        # There is one thread, so nothing else can hold a lock here.
        preexec_fn=lambda: libc.prctl(  # noqa: PLW1509
            _PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0
        ),
    )
    status: int | None = None
    while not stop and status is None:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            stop = True
        status = program.poll()
        _reap_adopted(program.pid)
    end_descendants(GRACE_SECONDS)
    return status if status is not None else 0


def end_descendants(grace_seconds: float) -> None:
    """SIGTERM every descendant, SIGKILL what is left after the grace; returns when none is."""
    deadline = time.monotonic() + grace_seconds
    told: set[int] = set()
    while living := descendants(os.getpid()):
        late = time.monotonic() > deadline
        for process in living if late else living - told:
            _signal(process, signal.SIGKILL if late else signal.SIGTERM)
        told |= living
        _reap_adopted(0)
        time.sleep(_POLL_SECONDS / 2)
    _reap_adopted(0)


def descendants(root: int) -> set[int]:
    """Process ids below the root, zombies left out."""
    children: dict[int, list[int]] = {}
    zombies = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # The command in parentheses may hold any character.
        state, parent = stat.rpartition(")")[2].split()[:2]
        process = int(entry.name)
        children.setdefault(int(parent), []).append(process)
        if state == "Z":
            zombies.add(process)
    found: set[int] = set()
    open_ends = [root]
    while open_ends:
        below = children.get(open_ends.pop(), [])
        found.update(below)
        open_ends.extend(below)
    return found - zombies


def _signal(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _reap_adopted(but: int) -> None:
    """Collect children that ended, except one whose status somebody else waits for."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == but:
            return
        os.waitpid(ended.si_pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
