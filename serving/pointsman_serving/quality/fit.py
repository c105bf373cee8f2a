"""From scores to a predictor: every choice by cross-validation, on the error of differences.

1. Learn on four fifths of the prompts to tell tasks apart, predict the fifth, five times: which
   step, how many passes and which temperature of the softmax give the smallest error of the
   *differences* between models.
2. The means by task are shrunk to the model's own mean, as a few scores say little, and
   calibrated: how far from the model's mean a prediction should go.
3. A linear term per model for what is left. It is kept only where it lowers the error by more
   than 1%: between benchmark tasks it does not, where all prompts have one task it does.
4. Learn again with these choices on everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from pointsman_serving.quality.measure import difference_rmse, measure
from pointsman_serving.quality.predictor import MOST_MODELS, MOST_TASKS, TABLE_BITS, Weights
from pointsman_serving.quality.training import (
    Features,
    features_of,
    softmax,
    train_rests,
    train_tasks,
)
from pointsman_serving.quality.windows import LENGTH_BANDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pointsman_serving.quality.scores import ScoreTable

FEWEST_PROMPTS: Final = 50
FOLDS: Final = 5
TABLE_BITS_ALLOWED: Final = range(10, 19)

STEPS: Final = (0.3, 1.0)
MOST_PASSES: Final = 6
TEMPERATURES: Final = (0.5, 0.7, 1.0, 1.4)
REST_STEP: Final = 0.02
MOST_REST_PASSES: Final = 6
REST_SHARES: Final = (0.3, 0.6, 1.0)
LEAST_GAIN: Final = 0.01
"""By which share the error must fall for the linear terms to be kept."""
SHRINK_SCORES: Final = 10.0
"""A task's mean is shrunk to the model's as if it had that many scores more at the model's mean."""

Progress = Callable[[str, int, int], None]
"""What is done, how much of it, of how much."""


class FitError(ValueError):
    """The scores do not allow a fit; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    step: float
    passes: int
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _RestChoice:
    passes: int
    share: float


def fit(
    table: ScoreTable,
    *,
    trained_at: str,
    seed: int = 0,
    table_bits: int = TABLE_BITS,
    progress: Progress = lambda _name, _done, _total: None,
) -> Weights:
    """Train a predictor; the same scores and seed give the same weights.

    Args:
        trained_at: ISO 8601, for people.
        table_bits: 2 to this power rows of weights, from 10 to 18; 14 do for most.

    Raises:
        FitError: too few prompts, too many models or tasks.
    """
    _check(table, table_bits)
    prompts = [features_of(prompt, table_bits) for prompt in table.prompts]
    fold_of = np.random.default_rng(seed).permutation(len(prompts)) % FOLDS

    trials = _task_trials(table, prompts, fold_of, table_bits, seed, progress)
    choice, expected = _choose(table, fold_of, trials)
    priors = _priors(table.scores)
    stretch = _stretch(expected, table.scores, priors)
    expected = priors + stretch * (expected - priors)
    rest_choice = None
    if len(table.models) > 1:
        rest_choice, expected = _choose_rest(
            table, prompts, fold_of, expected, table_bits, seed, progress
        )
    metrics = measure(expected.clip(0.0, 1.0), table.scores, priors)
    constant = np.broadcast_to(priors, table.scores.shape)
    metrics["prior_difference_rmse"] = difference_rmse(constant, table.scores)

    progress("weights", 0, 1)
    found = next(
        islice(
            train_tasks(
                prompts,
                table.task_of,
                tasks=len(table.tasks),
                table_bits=table_bits,
                step=choice.step,
                seed=seed,
            ),
            choice.passes - 1,
            None,
        )
    )
    columns = found.table / choice.temperature
    lengths = found.lengths / choice.temperature
    means = _means(table.scores, table.task_of, len(table.tasks), priors)
    means = priors + stretch * (means - priors)
    if rest_choice is not None:
        rests = table.scores - softmax(found.outputs(prompts), choice.temperature) @ means
        left = next(
            islice(
                train_rests(prompts, rests, table_bits=table_bits, step=REST_STEP, seed=seed),
                rest_choice.passes - 1,
                None,
            )
        )
        columns = np.hstack((columns, rest_choice.share * left.table))
        lengths = np.hstack((lengths, np.zeros((LENGTH_BANDS, len(table.models)))))
    quantised, units = _quantised(columns)
    progress("weights", 1, 1)
    return Weights(
        models=table.models,
        tasks=table.tasks,
        table_bits=table_bits,
        table=quantised,
        units=units,
        lengths=lengths.astype(np.float32),
        means=means.clip(0.0, 1.0).astype(np.float32),
        priors=priors.astype(np.float32),
        trained_at=trained_at,
        prompts=len(prompts),
        scores=int(np.isfinite(table.scores).sum()),
        metrics=metrics,
    )


def _check(table: ScoreTable, table_bits: int) -> None:
    if table_bits not in TABLE_BITS_ALLOWED:
        raise FitError(
            f"a table of 2^{table_bits} rows: allowed are {TABLE_BITS_ALLOWED.start} to "
            f"{TABLE_BITS_ALLOWED.stop - 1} bits"
        )
    if len(table.prompts) < FEWEST_PROMPTS:
        raise FitError(
            f"{len(table.prompts)} prompts are too few to learn from: give at least "
            f"{FEWEST_PROMPTS}, better some 200 for each task"
        )
    for what, names, most in (
        ("models", table.models, MOST_MODELS),
        ("tasks", table.tasks, MOST_TASKS),
    ):
        if len(names) > most:
            raise FitError(f"{len(names)} {what}; a predictor takes at most {most}: merge some")


def _task_trials(
    table: ScoreTable,
    prompts: list[Features],
    fold_of: NDArray[np.int64],
    table_bits: int,
    seed: int,
    progress: Progress,
) -> dict[tuple[float, int], NDArray[np.float64]]:
    """Logits [N, T] of prompts that were not trained on, by (step, passes)."""
    shape = (len(prompts), len(table.tasks))
    passes = MOST_PASSES if len(table.tasks) > 1 else 1
    steps = STEPS if len(table.tasks) > 1 else STEPS[:1]
    trials = {(step, number): np.zeros(shape) for step in steps for number in range(1, passes + 1)}
    done = 0
    for fold in range(FOLDS):
        seen, unseen = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        for step in steps:
            training = train_tasks(
                [prompts[row] for row in seen],
                table.task_of[seen],
                tasks=len(table.tasks),
                table_bits=table_bits,
                step=step,
                seed=seed,
            )
            held_out = [prompts[row] for row in unseen]
            for number, model in enumerate(islice(training, passes), start=1):
                trials[step, number][unseen] = model.outputs(held_out)
                done += 1
                progress("tasks", done, FOLDS * len(trials))
    return trials


def _choose(
    table: ScoreTable,
    fold_of: NDArray[np.int64],
    trials: dict[tuple[float, int], NDArray[np.float64]],
) -> tuple[_Choice, NDArray[np.float64]]:
    """The choice with the smallest error of differences, and its qualities [N, M]."""
    by_fold = []
    for fold in range(FOLDS):
        seen = fold_of != fold
        scores = table.scores[seen]
        means = _means(scores, table.task_of[seen], len(table.tasks), _priors(scores))
        by_fold.append(means)
    best = None
    for (step, passes), logits in trials.items():
        for temperature in TEMPERATURES if len(table.tasks) > 1 else (1.0,):
            shares = softmax(logits, temperature)
            expected = np.empty_like(table.scores)
            for fold, means in enumerate(by_fold):
                expected[fold_of == fold] = shares[fold_of == fold] @ means
            error = _error(expected, table.scores)
            if best is None or error < best[0]:
                choice = _Choice(step=step, passes=passes, temperature=temperature)
                best = (error, choice, expected)
    if best is None:
        raise FitError("there is nothing to choose from")
    return best[1], best[2]


def _choose_rest(
    table: ScoreTable,
    prompts: list[Features],
    fold_of: NDArray[np.int64],
    expected: NDArray[np.float64],
    table_bits: int,
    seed: int,
    progress: Progress,
) -> tuple[_RestChoice | None, NDArray[np.float64]]:
    """Whether linear terms help, and the qualities [N, M] with them if so."""
    trials = [np.zeros_like(expected) for _ in range(MOST_REST_PASSES)]
    for fold in range(FOLDS):
        seen, unseen = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        training = train_rests(
            [prompts[row] for row in seen],
            (table.scores - expected)[seen],
            table_bits=table_bits,
            step=REST_STEP,
            seed=seed,
        )
        held_out = [prompts[row] for row in unseen]
        for trial, model in zip(trials, training, strict=False):
            trial[unseen] = model.outputs(held_out)
        progress("models", fold + 1, FOLDS)
    least = (1.0 - LEAST_GAIN) * _error(expected, table.scores)
    best: _RestChoice | None = None
    for passes, trial in enumerate(trials, start=1):
        for share in REST_SHARES:
            error = _error(expected + share * trial, table.scores)
            if error < least:
                best, least = _RestChoice(passes=passes, share=share), error
    if best is None:
        return None, expected
    return best, expected + best.share * trials[best.passes - 1]


def _error(expected: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """The error of differences; of the level where no prompt has two models' scores."""
    known = np.isfinite(scores)
    if (known.sum(axis=1) > 1).any():
        return difference_rmse(expected, scores)
    return float(np.sqrt(((expected - scores)[known] ** 2).mean()))


def _priors(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M]: each model's mean, shrunk to the mean of all where it has few scores."""
    known = np.isfinite(scores)
    overall = float(scores[known].mean()) if known.any() else 0.5
    totals = np.where(known, scores, 0.0).sum(axis=0) + overall
    priors: NDArray[np.float64] = totals / (known.sum(axis=0) + 1.0)
    return priors


def _means(
    scores: NDArray[np.float64],
    task_of: NDArray[np.int64],
    tasks: int,
    priors: NDArray[np.float64],
) -> NDArray[np.float64]:
    """[T, M]: each task's mean for each model, shrunk to the model's mean."""
    known = np.isfinite(scores)
    totals = np.tile(SHRINK_SCORES * priors, (tasks, 1))
    counts = np.full((tasks, scores.shape[1]), SHRINK_SCORES)
    np.add.at(totals, task_of, np.where(known, scores, 0.0))
    np.add.at(counts, task_of, known)
    means: NDArray[np.float64] = totals / counts
    return means


def _stretch(
    expected: NDArray[np.float64], scores: NDArray[np.float64], priors: NDArray[np.float64]
) -> float:
    """How far from the model's mean to go: least squares, from 0 to 1.25."""
    known = np.isfinite(scores)
    moved = (expected - priors)[known]
    wanted = (scores - priors)[known]
    power = float(moved @ moved)
    return min(max(float(moved @ wanted) / power, 0.0), 1.25) if power > 0 else 1.0


def _quantised(
    columns: NDArray[np.float64] | NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Bytes and the unit of each column; a weight is off by half a unit at most."""
    units = np.maximum(np.abs(columns).max(axis=0) / 127.0, 1e-12).astype(np.float32)
    return np.rint(columns / units).clip(-127, 127).astype(np.int8), units
