"""Say in one go what this machine lacks, with the command that installs it."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import shutil
import sys


def missing() -> list[str]:
    """Each entry: what is missing, why it is needed, how to get it."""
    problems = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(
            f"Python {platform.python_version()} ({sys.executable}) is not supported, 3.11 to 3.13 "
            "are. Install one and run: make PYTHON=/path/to/python3.11 ..."
        )
    if importlib.util.find_spec("pip") is None:
        problems.append(
            f"pip is missing from {sys.executable}. Debian/Ubuntu: apt-get install python3-pip; "
            "Fedora: dnf install python3-pip"
        )
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        problems.append(
            f"This is {sys.platform} on {platform.machine()}: the engines need Linux on x86_64 or "
            "aarch64."
        )
        return problems
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        problems.append(
            "libnuma.so.1 is missing, which vLLM on CPUs loads. Debian/Ubuntu: apt-get install "
            "libnuma1; Fedora: dnf install numactl-libs"
        )
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        problems.append(
            "No C compiler, which torch calls when vLLM starts on CPUs. Debian/Ubuntu: apt-get "
            "install g++; Fedora: dnf install gcc-c++"
        )
    return problems


if __name__ == "__main__":
    found = missing()
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if found else 0)
