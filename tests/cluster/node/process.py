"""Commands that end, processes that stay, and waiting for what they bring."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LOG_TAIL_LINES = 25
_POLL_SECONDS = 0.1


class ClusterError(RuntimeError):
    """The cluster, or a command for it, failed; the message carries what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A process that stays inside the namespaces, entered through ``nsenter``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int | None:
        """Id, outside, of the process itself: the child of ``nsenter``."""
        return next(iter(child_ids(self.process.pid)), None)

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def stop(self, timeout_seconds: float = 20.0) -> None:
        """Ask it to end, and kill it when it does not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = self.pid
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_seconds)
                return
        self.process.kill()
        self.process.wait()


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_seconds: float = 600.0,
) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        ClusterError: it failed or took too long; with the end of its output.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            env={**os.environ, **env} if env else None,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{_short(words)}: not done after {timeout_seconds:.0f} s") from error
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]}: no such program") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_LOG_TAIL_LINES:])
        raise ClusterError(f"{_short(words)}: exit status {done.returncode}\n{said}")
    return done.stdout


def start(
    name: str, command: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None
) -> Daemon:
    """Start a process that stays, its output in ``log``."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env} if env else None,
            start_new_session=True,
        )
    return Daemon(name=name, process=process, log=log)


def wait_for(
    what: str,
    probe: Callable[[], bool],
    *,
    timeout_seconds: float,
    daemons: Sequence[Daemon] = (),
    poll_seconds: float = _POLL_SECONDS,
) -> None:
    """Wait until ``probe`` is true. An error of the probe counts as not yet.

    Raises:
        ClusterError: it took too long, or one of the daemons ended; with the end of its log.
    """
    deadline = time.monotonic() + timeout_seconds
    last = ""
    while True:
        try:
            if probe():
                return
        except (ClusterError, OSError) as error:
            last = str(error)
        for daemon in daemons:
            if not daemon.running():
                raise ClusterError(f"{daemon.name} ended while {what}:\n{log_tail(daemon.log)}")
        if time.monotonic() > deadline:
            logs = "".join(f"\n--- {daemon.log}\n{log_tail(daemon.log)}" for daemon in daemons)
            raise ClusterError(
                f"{what}: not so after {timeout_seconds:.0f} s. {last}{logs}".rstrip()
            )
        time.sleep(poll_seconds)


def log_tail(log: Path, lines: int = _LOG_TAIL_LINES) -> str:
    """The last lines of a log, or why there are none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"(no log: {error})"


def child_ids(pid: int) -> list[int]:
    """Process ids whose parent is ``pid``."""
    entries = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [int(entry.name) for entry in entries if _stat_fields(entry)[1:2] == [str(pid)]]


def start_time(pid: int) -> str | None:
    """When a process began, in clock ticks: tells a process from a later one with its id."""
    fields = _stat_fields(Path("/proc") / str(pid))
    return fields[19] if len(fields) > 19 and fields[0] != "Z" else None


def _stat_fields(entry: Path) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the state on: names may hold spaces and brackets."""
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _short(words: Sequence[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= 160 else f"{text[:157]}..."
