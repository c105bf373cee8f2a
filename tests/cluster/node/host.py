"""What the machine must have, and what of it a run may change and puts back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.node.containerd import CNI_PROGRAMS
from tests.cluster.node.layout import cache_folder
from tests.cluster.node.process import ClusterError, run

if TYPE_CHECKING:
    from tests.cluster.node.layout import Layout

LEAST_FREE_GIB = 15
INSTALL_VARIABLE = "POINTSMAN_INSTALL"
PATH_FALLBACK = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where Debian has administrators' programs, whatever the PATH says."""

_PACKAGE_OF = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    f"{CNI_PROGRAMS}/bridge": "containernetworking-plugins",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "sysctl": "procps",
    "gcc": "gcc",
    "/usr/include/signal.h": "libc6-dev",
    "tar": "tar",
}
"""Debian's package for each program, or file, that the cluster uses."""

# The kubelet sets these for the whole machine; they belong to no namespace.
_KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_CGROUPS = Path("/sys/fs/cgroup")
_REMOVE_SECONDS = 10.0


def what_is_missing() -> list[str]:
    """Sentences about what this machine lacks for a node; empty when nothing."""
    if sys.platform != "linux":
        return [f"a node needs Linux, this is {sys.platform}"]
    missing = [] if os.geteuid() == 0 else ["a node needs root: run this as root"]
    if packages := missing_packages():
        missing.append(
            f"programs are missing: apt-get install {' '.join(packages)}; with "
            f"{INSTALL_VARIABLE}=1 (or CI=true) this is done for you"
        )
    place = next(folder for folder in (cache_folder(), *cache_folder().parents) if folder.exists())
    for folder in {place, Path(os.environ.get("TMPDIR", "/tmp"))}:
        free = shutil.disk_usage(folder).free / 2**30
        if free < LEAST_FREE_GIB:
            missing.append(
                f"{free:.1f} GiB are free at {folder} and images need up to {LEAST_FREE_GIB}: "
                "make room, or set XDG_CACHE_HOME and TMPDIR to a larger disk"
            )
    return missing


def missing_packages() -> list[str]:
    """Debian packages whose programs are not here."""
    search = os.pathsep.join([os.environ.get("PATH", ""), *PATH_FALLBACK])
    return sorted(
        {
            package
            for program, package in _PACKAGE_OF.items()
            if not (program[0] == "/" and Path(program).exists())
            and shutil.which(program, path=search) is None
        }
    )


def require(*, install: bool | None = None) -> None:
    """Check the machine, and install what Debian has where that is wanted.

    Args:
        install: whether to install; None: as ``POINTSMAN_INSTALL`` and ``CI`` say.

    Raises:
        ClusterError: something is missing; one line for each.
    """
    if install is None:
        install = os.environ.get(INSTALL_VARIABLE) == "1" or os.environ.get("CI") == "true"
    packages = missing_packages() if sys.platform == "linux" else []
    if install and packages and os.geteuid() == 0 and shutil.which("apt-get"):
        # No package of these is to start a service on the machine.
        env = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        run(["apt-get", "update", "-qq"], env=env)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], env=env)
    if missing := what_is_missing():
        raise ClusterError("No node can run here:\n  - " + "\n  - ".join(missing))


def remember_settings(layout: Layout) -> None:
    """Write down the machine's kernel settings before a kubelet changes them."""
    values = {}
    for name in _KERNEL_SETTINGS:
        with contextlib.suppress(OSError):
            values[name] = (Path("/proc/sys") / name).read_text().strip()
    layout.host_settings.write_text(json.dumps(values))


def restore_settings(layout: Layout) -> None:
    """Put back what :func:`remember_settings` wrote down."""
    try:
        values = json.loads(layout.host_settings.read_text())
    except (OSError, ValueError):
        return
    for name, value in values.items():
        with contextlib.suppress(OSError):
            path = Path("/proc/sys") / name
            if path.read_text().strip() != value:
                path.write_text(value)


def make_cgroup(layout: Layout) -> None:
    """Make the cgroup of the cluster's pods in every hierarchy."""
    for hierarchy in _hierarchies():
        folder = hierarchy / layout.cgroup
        folder.mkdir(exist_ok=True)
        if hierarchy.name == "cpuset":
            # A new cpuset is empty, and takes no process until it has processors and memory.
            for name in ("cpuset.cpus", "cpuset.mems"):
                (folder / name).write_text((hierarchy / name).read_text())
        for name, half in (("cpu.shares", "512"), ("cpu.weight", "50")):
            # Where processors lack, the control plane goes before the pods.
            if (folder / name).exists():
                (folder / name).write_text(half)


def remove_cgroup(layout: Layout) -> None:
    """Remove the cluster's cgroups; nothing runs in them any more."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    for hierarchy in _hierarchies():
        top = hierarchy / layout.cgroup
        while top.exists():
            # The deepest first. The kernel needs a moment after the last process.
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            if time.monotonic() > deadline:
                raise ClusterError(f"cgroup {top} can't be removed: processes are still in it")
            time.sleep(0.02)


def _hierarchies() -> list[Path]:
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    # On cgroup v1 each controller has its own; some are links to a shared one.
    return [
        entry
        for entry in sorted(_CGROUPS.iterdir())
        if entry.is_dir() and not entry.is_symlink() and (entry / "cgroup.procs").exists()
    ]
