"""Network namespaces with a cable each, whose packets can be dropped.

Needs root and iproute2; where either is missing, engines listen on the loopback and no packet
is dropped.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_FOLDER = Path("/var/run/netns")


class NoNamespaceError(RuntimeError):
    """This machine gives us no network namespaces; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One namespace, a pair of virtual interfaces, and an address at either end."""

    name: str
    host_link: str
    inner_link: str
    host_address: str
    address: str

    @classmethod
    def create(cls, number: int) -> Namespace:
        """Lay the cable.

        Args:
            number: 0 to 63; makes names and addresses, in 10.201.0.0/16.

        Raises:
            NoNamespaceError: it cannot be done here.
        """
        # Names of interfaces have fifteen characters at most; the process's id keeps runs apart.
        tag = f"{os.getpid() % 100_000}x{number}"
        net = f"10.201.{os.getpid() % 256}"
        namespace = cls(
            name=f"chaos{tag}",
            host_link=f"ch{tag}h",
            inner_link=f"ch{tag}e",
            host_address=f"{net}.{number * 4 + 1}",
            address=f"{net}.{number * 4 + 2}",
        )
        if shutil.which("ip") is None or shutil.which("tc") is None:
            raise NoNamespaceError("the programs ip and tc are missing (package iproute2)")
        try:
            namespace._lay()
        except NoNamespaceError:
            namespace.delete()
            raise
        return namespace

    def _lay(self) -> None:
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self.host_link, "type", "veth", "peer", "name", self.inner_link)
        _run("ip", "link", "set", self.inner_link, "netns", self.name)
        _run("ip", "address", "add", f"{self.host_address}/30", "dev", self.host_link)
        _run("ip", "link", "set", self.host_link, "up")
        _run("ip", "-n", self.name, "address", "add", f"{self.address}/30", "dev", self.inner_link)
        _run("ip", "-n", self.name, "link", "set", self.inner_link, "up")
        _run("ip", "-n", self.name, "link", "set", "lo", "up")

    def drop(self) -> None:
        """Drop every packet in both directions, without a word to either side."""
        # A queue with room for no packet; netem's loss is not in every kernel.
        no_room = ("root", "pfifo", "limit", "0")
        _run("tc", "qdisc", "replace", "dev", self.host_link, *no_room)
        _run("tc", "-n", self.name, "qdisc", "replace", "dev", self.inner_link, *no_room)

    def restore(self) -> None:
        """Let packets through again."""
        _run("tc", "qdisc", "delete", "dev", self.host_link, "root")
        _run("tc", "-n", self.name, "qdisc", "delete", "dev", self.inner_link, "root")

    def delete(self) -> None:
        """Take everything down; what is not there is no error."""
        for command in (
            ("ip", "link", "delete", self.host_link),
            ("ip", "netns", "delete", self.name),
        ):
            subprocess.run(command, capture_output=True, check=False)

    def enter(self) -> None:
        """Move this process into the namespace: its new sockets are there."""
        with (_FOLDER / self.name).open() as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter the namespace {self.name}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNamespaceError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
