"""The README's first command, but for the installation."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_all_is_right_when_the_demo_checks_itself() -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pointsman_serving.cli.demo"),
            *("examples/quickstart", "--once", "--port=0"),
        ],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert 0 == result.returncode, result.stdout + result.stderr
    assert "All is right." in result.stdout
    assert "Paris" in result.stdout
