from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pointsman_serving.cli.plan import Machine, read_plan
from pointsman_serving.cli.stack import Stack
from pointsman_serving.engines.serve_listing import PoolState, PoolStatus
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings

TRACEBACK = """The deployment failed to start.
\x1b[36mray::ServeReplica\x1b[39m
Traceback (most recent call last):
  File "replica.py", line 1, in build
ValueError: '--dtyp' is no flag of the engine"""


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    file = tmp_path / "pool.yaml"
    file.write_text(
        "apiVersion: pointsman.dev/v1alpha1\nkind: ModelPool\nmetadata: {name: sim}\nspec:\n"
        "  servedModelName: sim\n"
        "  backend: {type: RayServe, rayServe: {engine: {type: Simulated}}}\n"
    )
    plan = read_plan([file], Machine(models=tmp_path))
    return Stack(plan, Gateway(settings=GatewaySettings(port=0), table=plan.table), None)


def status(**more: Any) -> PoolStatus:
    values = {"state": PoolState.FAILED, "ready": 0, "message": TRACEBACK} | more
    return PoolStatus(pool="sim", total=2, base_path="/sim", **values)


@pytest.mark.pain_16
def test_cause_comes_first_when_ray_sends_a_traceback(stack: Stack) -> None:
    first, *rest = stack.failure(status()).splitlines()
    assert "pool sim is failed: ValueError: '--dtyp' is no flag of the engine" == first
    assert "\x1b" not in "".join(rest)


def test_who_serves_on_is_said_when_a_roll_out_fails(stack: Stack) -> None:
    assert "2 of its replicas serve on" in stack.failure(status(ready=2))
    assert "serve on" not in stack.failure(status())


def test_rays_own_words_are_shown_when_they_name_no_error(stack: Stack) -> None:
    assert "no nodes" in stack.failure(status(message="no nodes")).splitlines()[0]
