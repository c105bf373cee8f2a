"""A program whose processes all end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and prctl")

# Starts a process that leaves the group, whose parent then ends, and which ignores SIGTERM.
PROGRAM = """
import signal, subprocess, sys, time
orphan = '''
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
'''
subprocess.run([sys.executable, "-c", orphan])
time.sleep(60)
"""


def start(program: str, output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "pointsman_serving.cluster.guard"),
                *(sys.executable, "-c", program),
            ],
            stdin=subprocess.PIPE,
            stdout=file,
        )


def wait_for(found: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", ["closed pipe", "SIGTERM"])
def test_orphans_end_too_when_the_guard_is_told_to_stop(how: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    guard = start(PROGRAM, output)
    assert guard.stdin is not None
    wait_for(lambda: output.read_text().endswith("\n"))
    orphan = int(output.read_text())
    assert alive(orphan)
    if how == "SIGTERM":
        guard.terminate()
    else:
        guard.stdin.close()
    assert 0 == guard.wait(timeout=15)
    assert not alive(orphan)
    guard.stdin.close()


def test_status_is_the_programs_when_it_ends_by_itself(tmp_path: Path) -> None:
    guard = start("raise SystemExit(7)", tmp_path / "output")
    assert guard.stdin is not None
    assert 7 == guard.wait(timeout=15)
    guard.stdin.close()
