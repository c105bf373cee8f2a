"""`pointsman gateway` before it serves: what it refuses, and how it logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def run(*options: str, **environment: str) -> tuple[int, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POINTSMAN_", "POD_", "KUBE"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pointsman_serving.cli.main", "gateway", *options],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, " ".join(done.stderr.split())


def test_namespace_is_asked_for_when_it_is_no_pod() -> None:
    code, said = run()
    assert 2 == code
    assert "the namespace is not known" in said
    assert "--namespace" in said


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (("--port=9090",), {}, "admin_port is 9090, and so is port; they must differ"),
        ((), {"POINTSMAN_GATEWAY_PORT": "9090"}, "they must differ"),
        ((), {"POINTSMAN_GATEWAY_DRAIN_SECONDS": "soon"}, "POINTSMAN_GATEWAY_DRAIN_SECONDS"),
        (
            ("--kubeconfig=/nowhere/config",),
            {"POD_NAMESPACE": "system"},
            "/nowhere/config is not a file",
        ),
    ],
)
def test_setting_is_refused_with_its_name_when_it_cannot_be(
    options: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    code, said = run(*options, **environment)
    assert (2, True) == (code, message in said), said


def test_log_is_json_without_what_is_in_variables_when_something_fails() -> None:
    program = """
import logging, structlog
from pointsman_serving.cli.logs import LogLevel, json_logs
json_logs(LogLevel.INFO)
def fail():
    prompt = "a user's " + "prompt"
    raise ValueError("it failed")
log = structlog.get_logger("x")
log.debug("unheard")
log.info("heard", pool="p", place=object)
try:
    fail()
except ValueError:
    log.exception("caught")
    logging.getLogger("library").exception("of a library")
logging.getLogger("library").info("unheard")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert ["heard", "caught", "of a library"] == [line["event"] for line in lines]
    assert ["info", "error", "error"] == [line["level"] for line in lines]
    assert ("p", "library") == (lines[0]["pool"], lines[2]["logger"])
    assert all("it failed" in line["exception"] for line in lines[1:])
    assert "user's" + " prompt" not in done.stderr
    assert all(line["time"].endswith("Z") for line in lines)
