"""``pointsman model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from pointsman_serving.cli.model import app
from pointsman_serving.models.gguf import write_model_folder
from tests.unit.models import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "dense").mkdir(parents=True)
    write_model_folder(tiny.write_gguf(tmp_path / "tiny.gguf"), folder / "dense")
    return folder


def run(cache: Path, *args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, args, env={"POINTSMAN_CACHE": str(cache)})
    return result.exit_code, " ".join(result.output.split())


def test_upcycle_says_where_the_model_is_and_whether_it_was_made(models: Path) -> None:
    code, output = run(models.parent, "upcycle", "dense", "moe", "--experts", "3")
    assert (0, f"moe is made: {models / 'moe'}") == (code, output)

    code, output = run(models.parent, "upcycle", "dense", "moe", "--experts", "3")
    assert (0, f"moe was there already: {models / 'moe'}") == (code, output)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("import", "gpt-9"), "model 'gpt-9' is not known; allowed are: smollm2"),
        (("upcycle", "dense", "moe", "--experts", "1"), "experts is 1; allowed are 2 to 256"),
        (("upcycle", "dense", "moe", "--shape", "dbrx"), "allowed are mixtral, qwen3-moe"),
        (("upcycle", "nothing", "moe"), "is no model folder"),
        (("upcycle", "dense", "../moe"), "model name '../moe': allowed"),
        (("upcycle", "dense", "dense"), "the same folder"),
    ],
)
def test_command_exits_with_2_when_the_input_is_wrong(
    models: Path, args: tuple[str, ...], says: str
) -> None:
    code, output = run(models.parent, *args)

    assert code == 2
    assert says in output
    assert [models / "dense"] == [path for path in models.iterdir() if path.is_dir()]
