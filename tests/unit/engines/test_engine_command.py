"""``pointsman engine simulated``."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.request

import pytest
from typer.testing import CliRunner

from pointsman_serving.cli.engine import app


def test_simulated_says_so_at_once_when_the_port_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["simulated", "--port", str(port)])
    assert 2 == result.exit_code
    assert f"port {port} on 127.0.0.1 is in use" in result.stderr


def test_simulated_says_so_when_the_host_is_not_there() -> None:
    result = CliRunner().invoke(app, ["simulated", "--host", "host.invalid", "--port", "0"])
    assert 2 == result.exit_code
    assert "cannot listen on host.invalid port 0" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--max-seqs", "3"], "'--max-seqs' is no flag of the Simulated engine"),
        (["--speed", "fast"], "--speed is 'fast': give a number"),
    ],
)
def test_simulated_names_the_flag_when_it_is_wrong(args: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["simulated", *args])
    assert 2 == result.exit_code
    assert message in result.stderr


def test_simulated_lists_its_flags_when_help_is_asked_for() -> None:
    result = CliRunner().invoke(app, ["simulated", "--help"])
    assert 0 == result.exit_code
    assert "--enable-prefix-caching / --no-enable-prefix-caching" in result.stdout


def test_simulated_serves_until_it_is_told_to_stop() -> None:
    code = "from pointsman_serving.cli.engine import app; app()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, "simulated", "--port=0", "--model=m", "--speed=50"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"'m' listens on (http://127\.0\.0\.1:\d+)/v1", line)
            assert found is not None, line
            with urllib.request.urlopen(f"{found[1]}/health", timeout=20) as reply:
                assert 200 == reply.status
                assert {16} == {
                    len(reply.headers[f"x-pointsman-{name}"]) for name in ("instance", "revision")
                }
        finally:
            process.terminate()
        process.wait(timeout=20)
