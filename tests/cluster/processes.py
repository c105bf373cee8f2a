"""Processes that tests start and end: by their ids, and never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
# The kernel sends the signal when the *thread* that forked ends, so one that stays does it.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")


class ProcessFailedError(RuntimeError):
    """A process ended or did not get ready; the message has the end of its log."""


class Process:
    """A running program, with its output in a file.

    It ends with the tests' process, even if that is killed (on Linux).
    """

    def __init__(self, name: str, command: Sequence[str | Path], *, log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._popen = _STARTER.submit(
                subprocess.Popen,
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal is for the tests, which then end this.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            ).result()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def rss_bytes(self) -> int:
        """Resident memory now (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        line = next(each for each in status.splitlines() if each.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def tail(self, lines: int = 20) -> str:
        """The last lines of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def stop(self, *, grace_seconds: float = 10.0) -> None:
        """Ask it to end, kill it when it has not after ``grace_seconds``, and wait for it."""
        if self.is_alive and grace_seconds > 0:
            self._popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace_seconds)
        if self.is_alive:
            self._popen.kill()
        self._popen.wait()


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_free(port: int, *, host: str = "127.0.0.1", timeout_seconds: float = 30.0) -> None:
    """Wait until the port can be bound again: a server takes seconds to let it go."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                if time.monotonic() > deadline:
                    raise
            else:
                return
        time.sleep(0.05)
