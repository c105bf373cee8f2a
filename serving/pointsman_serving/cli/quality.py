"""``pointsman quality``: predictors of how well each model would answer a prompt."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pointsman_serving.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pointsman_serving.quality.predictor import QualityPredictor, Weights
    from pointsman_serving.quality.scores import ScoreTable

app = typer.Typer(
    name="quality",
    help="Learn from a file of scores how well each model answers which prompt.",
    no_args_is_help=True,
)

_WRONG_INPUT = 2
_TASKS_SHOWN = 3
_ERRORS = (
    ("difference between two models (RMSE)", "difference_rmse"),
    ("difference between two models (mean)", "difference_mae"),
    ("level (mean)", "level_mae"),
    ("calibration", "calibration_error"),
    ("regret of choosing the best", "regret"),
    ("  of always choosing the best on average", "regret_prior"),
)

_Predictor = Annotated[Path, typer.Argument(help="A predictor: quality.pqm.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def quality() -> None:
    """Predictors that a RoutePolicy may name: fit one, look at it, ask it."""
    if find_spec("numpy") is None:
        raise UsageError("this command needs numpy; install pointsman[gateway]")


@app.command()
def fit(
    scores: Annotated[
        Path,
        typer.Argument(
            help='JSONL: {"task": ..., "prompt": ..., "scores": {model: 0 to 1}}.',
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the predictor.")] = Path("quality.pqm"),
    table_bits: Annotated[
        int, typer.Option(help="2 to this power rows of weights, 10 to 18.", min=10, max=18)
    ] = 14,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.", min=0)] = 0,
    as_json: _Json = False,
) -> None:
    """Train a predictor; its errors are those on prompts that a fold had not seen."""
    from pointsman_serving.quality.artefact import ArtefactError, pack
    from pointsman_serving.quality.fit import FitError
    from pointsman_serving.quality.fit import fit as fit_weights

    table = _read_scores(scores)
    try:
        with _progress() as progress:
            weights = fit_weights(
                table,
                trained_at=datetime.now(UTC).isoformat(timespec="seconds"),
                seed=seed,
                table_bits=table_bits,
                progress=progress,
            )
        data = pack(weights)
    except (FitError, ArtefactError) as error:
        raise UsageError(f"{scores}: {error}") from None
    try:
        _write(out, data)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from None
    _print(weights, len(data), out, as_json=as_json)


@app.command()
def show(predictor: _Predictor, as_json: _Json = False) -> None:
    """Print what a predictor knows: its models, tasks, date and errors."""
    weights, size = _load(predictor)
    _print(weights, size, predictor, as_json=as_json)


@app.command()
def score(
    predictor: _Predictor,
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")] = "",
    task: Annotated[str, typer.Option(help="The request's task, if it states one.")] = "",
    against: Annotated[
        Path | None,
        typer.Option(help="Measured scores (JSONL) that the predictor was not trained on."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Predict for one prompt, or measure the predictor on prompts it has not seen."""
    if (against is None) == (not prompt):
        raise UsageError("give a prompt or --against scores.jsonl, one of them")
    from pointsman_serving.quality.predictor import QualityPredictor

    loaded = QualityPredictor(_load(predictor)[0])
    if against is not None:
        _print_errors(_measure(loaded, _read_scores(against), against), as_json=as_json)
        return
    text = sys.stdin.read() if prompt == "-" else prompt
    _print_prediction(loaded, text, task, as_json=as_json)


def _read_scores(path: Path) -> ScoreTable:
    from pointsman_serving.quality.scores import ScoreFileError, read_scores

    try:
        with path.open("rb") as lines:
            return read_scores(lines, str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ScoreFileError as failure:
        console = Console(stderr=True)
        for finding in failure.errors:
            console.print(str(finding), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(_WRONG_INPUT) from None


def _load(path: Path) -> tuple[Weights, int]:
    from pointsman_serving.quality.artefact import MOST_BYTES, ArtefactError, unpack

    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if size > MOST_BYTES:
        raise UsageError(
            f"{path}: {size:,} bytes are more than a predictor may have ({MOST_BYTES:,}); fit it "
            "again with a smaller --table-bits or fewer tasks"
        )
    try:
        return unpack(data), len(data)
    except ArtefactError as error:
        raise UsageError(f"{path}: {error}") from None


def _write(path: Path, data: bytes) -> None:
    """In whole or not at all: a gateway may be reading the file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _measure(predictor: QualityPredictor, table: ScoreTable, path: Path) -> dict[str, float]:
    import numpy as np

    from pointsman_serving.quality.measure import measure

    shared = [model for model in table.models if model in predictor.models]
    if not shared:
        raise UsageError(
            f"{path} scores none of the predictor's models: {', '.join(predictor.models[:20])}"
        )
    columns = [table.models.index(model) for model in shared]
    found = [predictor.predict(prompt) for prompt in table.prompts]
    predicted = np.array([[row[model] for model in shared] for row in found])
    priors = dict(zip(predictor.models, predictor.weights.priors.tolist(), strict=True))
    return measure(
        predicted, table.scores[:, columns], np.array([priors[model] for model in shared])
    )


def _print(weights: Weights, size: int, path: Path, *, as_json: bool) -> None:
    models = dict(zip(weights.models, weights.priors.tolist(), strict=True))
    if as_json:
        shown = {
            "path": str(path),
            "bytes": size,
            "trained_at": weights.trained_at,
            "prompts": weights.prompts,
            "scores": weights.scores,
            "tasks": list(weights.tasks),
            "models": models,
            "metrics": dict(weights.metrics),
        }
        print(json.dumps(shown, indent=1))
        return
    console = Console()
    console.print(
        f"{path}: {size:,} bytes, {len(weights.models)} models, {len(weights.tasks)} tasks, "
        f"{weights.prompts:,} prompts, {weights.trained_at}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.print(_quality_table("mean", models), soft_wrap=True)
    _print_errors(weights.metrics, as_json=False)


def _print_prediction(predictor: QualityPredictor, text: str, task: str, *, as_json: bool) -> None:
    qualities = predictor.predict(text, task)
    shares = predictor.task_shares(text)
    if as_json:
        print(json.dumps({"qualities": qualities, "tasks": shares}, indent=1))
        return
    console = Console()
    console.print(_quality_table("quality", qualities), soft_wrap=True)
    likely = sorted(shares.items(), key=lambda item: -item[1])[:_TASKS_SHOWN]
    words = ", ".join(f"{name} {share:.0%}" for name, share in likely)
    console.print(f"task: {task} (stated)" if task in shares else f"task: {words}", markup=False)


def _quality_table(title: str, qualities: dict[str, float]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column(title, justify="right")
    for model, value in sorted(qualities.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(model, f"{value:.3f}")
    return table


def _print_errors(metrics: Mapping[str, float], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dict(metrics), indent=1))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("error")
    table.add_column("", justify="right")
    for title, name in _ERRORS:
        if name in metrics:
            table.add_row(title, f"{metrics[name]:.4f}")
    Console().print(table, soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        rows = {}

        def show_progress(name: str, done: int, total: int) -> None:
            if name not in rows:
                rows[name] = bar.add_task(f"learning {name}", total=total)
            bar.update(rows[name], completed=done)

        yield show_progress
