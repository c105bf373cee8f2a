from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pointsman_serving.cli.errors import UsageError
from pointsman_serving.cli.main import app

FAST = ["--warm-up", "20", "--requests", "100", "--instances", "2", "--processes", "1"]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
    assert 0 == result.exit_code
    return result.stdout


def test_table_compares_the_arms() -> None:
    lines = invoke("--generate", "tool-agent", "--arm", "random", "--arm", "lmetric", *FAST)

    title, first, second = lines.splitlines()
    assert title.startswith("arm")
    assert "TTFT p50 s" in title
    assert ["random", "lmetric"] == [first.split()[0], second.split()[0]]


def test_figures_are_json_when_asked(tmp_path: Path) -> None:
    arguments = ["--generate", "multi-turn", "--arm", "round-robin", "--seeds", "2", *FAST]

    printed = json.loads(invoke(*arguments, "--json", "-"))
    invoke(*arguments, "--json", str(tmp_path / "out.json"))

    assert printed == json.loads((tmp_path / "out.json").read_text())
    assert [0, 1] == [each["seed"] for each in printed["results"]]


def test_events_happen_to_the_fleet() -> None:
    events = ["add:3", "remove:4:0", "crash:5:1:2.5", "slow:6:2:1.5"]
    options = [part for event in events for part in ("--event", event)]

    arguments = ["--generate", "tool-agent", "--arm", "random", *FAST, *options, "--json", "-"]
    (result,) = json.loads(invoke(*arguments))["results"]

    assert ["Added", "Removed", "Crashed", "Slowed"] == [e["type"] for e in result["events"]]
    assert 2.5 == result["events"][2]["back_after_seconds"]


def test_arms_are_listed() -> None:
    names = [line.split()[0] for line in invoke("--list-arms").splitlines()]

    assert {"pointsman", "dualmap", "routebalance"} < {*names}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either --trace FILE or --generate"),
        (["--generate", "x"], "--generate x is not known: give tool-agent or multi-turn"),
        (["--trace", "a.txt"], "--trace a.txt is neither .jsonl"),
        (["--trace", "none.jsonl", *FAST], "none.jsonl: cannot be read"),
        (["--generate", "tool-agent", "--arm", "lmetrics"], "did you mean 'lmetric'?"),
        (["--generate", "tool-agent", "--event", "boom:1"], "--event 'boom:1' is not known"),
        (["--generate", "tool-agent", "--event", "slow:1:0"], "write add:60"),
        (["--generate", "tool-agent", "--share", "0"], "--share 0 is no share"),
        (["--generate", "tool-agent", "--requests", "9"], "has 9 requests and the first 500"),
        (["--generate", "tool-agent", "--instances", "0"], "count of group 'pool' is 0"),
    ],
)
def test_wrong_option_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        invoke(*arguments)

    assert message in str(caught.value)
