"""``pointsman quality`` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pointsman_serving.cli.errors import UsageError
from pointsman_serving.cli.quality import app
from pointsman_serving.quality.artefact import pack
from tests.unit.quality.prompts import fitted, prompt, score_lines

RUNNER = CliRunner()


@pytest.fixture
def predictor(tmp_path: Path) -> Path:
    path = tmp_path / "quality.pqm"
    path.write_bytes(pack(fitted()))
    return path


def test_a_predictor_is_written_when_scores_are_good(tmp_path: Path) -> None:
    scores, out = tmp_path / "scores.jsonl", tmp_path / "new.pqm"
    scores.write_bytes(b"\n".join(score_lines(25)))
    done = RUNNER.invoke(app, ["fit", str(scores), "--out", str(out), "--table-bits", "10"])
    assert 0 == done.exit_code, done.output
    assert "3 models, 3 tasks, 75 prompts" in done.output
    shown = RUNNER.invoke(app, ["show", str(out), "--json"])
    found = json.loads(shown.stdout)
    assert {"coder", "writer", "small"} == set(found["models"])
    assert out.stat().st_size == found["bytes"]
    assert [out, scores] == sorted(tmp_path.iterdir())


def test_every_finding_is_shown_when_scores_are_wrong(tmp_path: Path) -> None:
    scores, out = tmp_path / "scores.jsonl", tmp_path / "new.pqm"
    scores.write_bytes(b'{"task": "t", "prompt": "p", "scores": {"a": -1}}\nnonsense')
    done = RUNNER.invoke(app, ["fit", str(scores), "--out", str(out)])
    assert 2 == done.exit_code
    assert f"{scores}:1: scores.a: is -1" in done.stderr
    assert f"{scores}:2: is not JSON" in done.stderr
    assert not out.exists()


def test_qualities_are_printed_when_a_prompt_is_given(predictor: Path) -> None:
    done = RUNNER.invoke(app, ["score", str(predictor), prompt("code", 777), "--json"])
    found = json.loads(done.stdout)
    assert "coder" == max(found["qualities"], key=found["qualities"].__getitem__)
    assert found["tasks"]["code"] > 0.7
    piped = RUNNER.invoke(app, ["score", str(predictor), "-", "--json"], input=prompt("code", 777))
    assert found == json.loads(piped.stdout)


def test_the_table_names_the_task_when_it_is_stated(predictor: Path) -> None:
    done = RUNNER.invoke(app, ["score", str(predictor), "anything", "--task", "prose"])
    assert "task: prose (stated)" in done.output
    assert "writer" == done.output.splitlines()[1].split()[0]


def test_errors_are_measured_when_other_scores_are_given(predictor: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in score_lines(20)]
    for row in rows:
        row["prompt"] = "new: " + row["prompt"]
        row["scores"]["unheard-of"] = 1.0
        del row["scores"]["small"]
    scores = tmp_path / "other.jsonl"
    scores.write_text("\n".join(map(json.dumps, rows)))
    done = RUNNER.invoke(app, ["score", str(predictor), "--against", str(scores), "--json"])
    assert 0 == done.exit_code, done.output
    found = json.loads(done.stdout)
    assert found["regret"] < found["regret_prior"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "missing.pqm"], "cannot read missing.pqm: No such file"),
        (["show", "bad.pqm"], "bad.pqm: not a quality predictor"),
        (["show", "large.pqm"], "large.pqm: 700,001 bytes are more"),
        (["score", "quality.pqm"], "give a prompt or --against"),
        (["score", "quality.pqm", "--against", "strange.jsonl"], "none of the predictor's models"),
        (["fit", "missing.jsonl"], "cannot read missing.jsonl: No such file"),
        (["fit", "strange.jsonl"], "1 prompts are too few"),
        (["fit", "scores.jsonl", "--out", "none/x.pqm", "--table-bits", "10"], "cannot write none"),
    ],
)
def test_the_cause_is_told_when_a_command_cannot_be_done(
    arguments: list[str],
    words: str,
    predictor: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pqm").write_bytes(b"nonsense")
    Path("large.pqm").write_bytes(bytes(700_001))
    Path("strange.jsonl").write_bytes(b'{"task": "t", "prompt": "p", "scores": {"other": 1}}')
    Path("scores.jsonl").write_bytes(b"\n".join(score_lines(20)))
    done = RUNNER.invoke(app, arguments)
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
