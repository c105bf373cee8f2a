"""Network, mount and process namespaces of their own for everything that a node runs.

The machine's addresses, routes, packet filter, mounts and folders below /run and /var stay as they
are: the node writes to an overlay. Ending the first process ends all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.node import layout as at
from tests.cluster.node.process import ClusterError, Daemon, child_ids, run, start, start_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.cluster.node.layout import Layout

_CLONE_NEWNET = 0x40000000
_END_SECONDS = 15.0
_INIT = Path(__file__).with_name("init.py")

_NETWORK = f"""
set -eu
mount --make-rshared /
ip link set lo up
ip link add node0 type veth peer name node1
ip link set node1 up
ip link set node0 up
ip address add {at.NODE_ADDRESS}/24 dev node0
ip route add default via {at.NODE_GATEWAY} dev node0
sysctl -q -w net.ipv4.ip_forward=1
"""


class Sandbox:
    """The namespaces of one cluster."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._starter: subprocess.Popen[bytes] | None = None

    def create(self, *, keep: bool) -> None:
        """Make the namespaces.

        Args:
            keep: they outlive this process; else they end with it, however it ends.
        """
        self._starter = subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc"),
                *(sys.executable, "-S", "-E", str(_INIT), *(["--keep"] if keep else [])),
            ],
            stdin=subprocess.DEVNULL if keep else subprocess.PIPE,
            start_new_session=True,
        )
        pid = _first_child(self._starter)
        self.layout.init_pid.write_text(f"{pid} {start_time(pid)}")
        self.run(["sh", "-c", _NETWORK + self._overlays()])

    def _overlays(self) -> str:
        """/run and /var that the node writes to without the machine's seeing it."""
        script = ""
        for folder in ("run", "var"):
            upper, work = (self.layout.root / "overlay" / folder / part for part in ("up", "work"))
            upper.mkdir(parents=True)
            work.mkdir(parents=True)
            options = f"lowerdir=/{folder},upperdir={upper},workdir={work}"
            script += f"mount -t overlay overlay -o {options} /{folder}\n"
        self.layout.pod_logs.mkdir(parents=True, exist_ok=True)
        return (
            script + f"mkdir -p /var/log/pods\nmount --bind {self.layout.pod_logs} /var/log/pods\n"
        )

    @property
    def pid(self) -> int | None:
        """Id, outside, of the namespaces' first process; None when it does not run."""
        try:
            pid, started = self.layout.init_pid.read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if start_time(int(pid)) == started else None

    def command(self, words: Sequence[str | Path], *, network_only: bool = False) -> list[str]:
        """The command line that runs ``words`` inside.

        Args:
            words: program and arguments, with absolute paths.
            network_only: keep this process's folders and process ids, take the network alone.
        """
        pid = self.pid
        if pid is None:
            raise ClusterError(f"cluster {self.layout.name!r} does not run: start it first")
        flags = ["--net"] if network_only else ["--net", "--mount", "--pid"]
        return ["nsenter", f"--target={pid}", *flags, "--", *(str(word) for word in words)]

    def run(
        self,
        words: Sequence[str | Path],
        *,
        stdin: str | None = None,
        timeout_seconds: float = 600.0,
    ) -> str:
        """Run a command inside to its end and return what it printed."""
        return run(self.command(words), stdin=stdin, timeout_seconds=timeout_seconds)

    def start(
        self, name: str, words: Sequence[str | Path], *, env: Mapping[str, str] | None = None
    ) -> Daemon:
        """Start a process that stays inside."""
        return start(name, self.command(words), self.layout.logs / f"{name}.log", env=env)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Let the calling thread, and the threads and processes it starts, use the network inside.

        Sockets that are open already stay where they are.
        """
        pid = self.pid
        if pid is None:
            raise ClusterError(f"cluster {self.layout.name!r} does not run: start it first")
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            inside = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            try:
                _enter(inside)
            finally:
                os.close(inside)
            try:
                yield
            finally:
                _enter(outside)
        finally:
            os.close(outside)

    def end(self) -> None:
        """End everything inside. Harmless when nothing runs."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + _END_SECONDS
            while start_time(pid) is not None:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"process {pid}, the first of cluster {self.layout.name!r}, was killed "
                        f"and still runs after {_END_SECONDS:.0f} s"
                    )
                time.sleep(0.05)
        if self._starter is not None:
            if self._starter.stdin is not None:
                self._starter.stdin.close()
            self._starter.wait(_END_SECONDS)
            self._starter = None
        self.layout.init_pid.unlink(missing_ok=True)


def _first_child(starter: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline and starter.poll() is None:
        for pid in child_ids(starter.pid):
            # Once it runs our program, all of its namespaces and its /proc are its own.
            if str(_INIT).encode() in _command_line(pid):
                return pid
        time.sleep(0.02)
    raise ClusterError("unshare made no namespaces: this needs root on Linux with all namespaces")


def _command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise ClusterError(f"cannot change the network namespace: {os.strerror(number)}")
