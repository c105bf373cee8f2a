from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from pointsman_serving.cli.validate import validate

QUICKSTART = Path(__file__).resolve().parents[3] / "examples" / "quickstart"

APP = typer.Typer()
APP.command()(validate)


def test_validate_counts_the_objects_when_all_is_right() -> None:
    result = CliRunner().invoke(APP, [str(QUICKSTART)])
    assert (result.exit_code, result.stdout) == (0, "2 ModelPools, 1 RoutePolicy: valid\n")


def test_validate_names_what_it_did_not_check_when_there_are_other_objects(
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("apiVersion: v1\nkind: Secret\nmetadata: {name: hf}\n")
    result = CliRunner().invoke(APP, [str(QUICKSTART), str(secret)])
    assert result.exit_code == 0
    assert f"not checked: Secret hf (v1) in {secret}:1" in result.stdout


def test_validate_exits_2_and_says_every_error_when_something_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(
        (QUICKSTART / "modelpool-smollm2.yaml")
        .read_text()
        .replace("replicas: 2", 'replicas: "[red]two[/red]"')
        .replace("contextTokens", "contextToken")
    )
    result = CliRunner().invoke(APP, [str(path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == str(path)
    assert "did you mean contextTokens?" in result.stderr
    assert "[red]two[/red]" in result.stderr
    assert lines[-1] == "2 errors"
