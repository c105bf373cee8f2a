"""Weights learned prompt by prompt: AdaGrad on the rows that a prompt touches.

A pass over 5,000 prompts takes about a second, memory is the prompts' rows, and both grow
with the number of prompts only, where solving the ridge exactly grows with its square and cube.
How far the weights are taken from zero is set by the number of passes and the step, which the
fit chooses by cross-validation: early stopping is a ridge's shrinkage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from pointsman_serving.quality.windows import LENGTH_BANDS, length_band, window_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_LENGTH_STEP: Final = 0.05
_FIRST_CURVATURE: Final = 1e-3


class Features(NamedTuple):
    """A prompt as the trainer sees it."""

    rows: NDArray[np.int64]
    """Distinct rows of the table."""
    weights: NDArray[np.float32]
    """How often each row comes, over the root of the number of windows."""
    band: int
    """Of the length."""


def features_of(prompt: str, table_bits: int) -> Features:
    """What ``QualityPredictor`` sums, with repeated rows added up."""
    rows, counts = np.unique(window_rows(prompt, table_bits), return_counts=True)
    weights = counts.astype(np.float32)
    weights *= np.float32(weights.sum() ** -0.5)
    return Features(rows, weights, length_band(prompt))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear:
    """A table [R, C] and what the length adds [32, C]."""

    table: NDArray[np.float32]
    lengths: NDArray[np.float32]

    def outputs(self, prompts: Sequence[Features]) -> NDArray[np.float64]:
        """[N, C]."""
        found = [
            prompt.weights @ self.table.take(prompt.rows, axis=0) + self.lengths[prompt.band]
            for prompt in prompts
        ]
        return np.array(found, np.float64).reshape(len(found), self.table.shape[1])


def softmax(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Over the last axis."""
    scaled = logits / temperature
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = scaled / scaled.sum(axis=-1, keepdims=True)
    return shares


def train_tasks(
    prompts: Sequence[Features],
    task_of: NDArray[np.int64],
    *,
    tasks: int,
    table_bits: int,
    step: float,
    seed: int,
) -> Iterator[Linear]:
    """Learn to tell tasks apart (cross-entropy); yields the state after each pass, forever.

    The state goes on changing when the next pass begins.
    """
    model = _empty(table_bits, tasks)
    shares = (np.bincount(task_of, minlength=tasks) + 1.0) / (len(task_of) + tasks)
    model.lengths[:] = np.log(shares)
    curvature = np.full(len(model.table), _FIRST_CURVATURE, np.float32)
    random = np.random.default_rng(seed)
    while True:
        for number in random.permutation(len(prompts)).tolist():
            rows, weights, band = prompts[number]
            near = model.table.take(rows, axis=0)
            gradient = weights @ near
            gradient += model.lengths[band]
            np.exp(gradient - gradient.max(), out=gradient)
            gradient /= gradient.sum()
            gradient[task_of[number]] -= 1.0
            model.lengths[band] -= np.float32(_LENGTH_STEP) * gradient
            _move(model.table, curvature, rows, weights, near, gradient, step)
        yield model


def train_rests(
    prompts: Sequence[Features],
    rests: NDArray[np.float64],
    *,
    table_bits: int,
    step: float,
    seed: int,
) -> Iterator[Linear]:
    """Learn what the tasks leave unexplained (squared error); as ``train_tasks``.

    Args:
        rests: [N, M]; NaN where there is no score.
    """
    targets = rests.astype(np.float32)
    known = np.isfinite(targets)
    targets[~known] = 0.0
    model = _empty(table_bits, targets.shape[1])
    curvature = np.full(len(model.table), _FIRST_CURVATURE, np.float32)
    random = np.random.default_rng(seed)
    while True:
        for number in random.permutation(len(prompts)).tolist():
            rows, weights, _ = prompts[number]
            near = model.table.take(rows, axis=0)
            gradient = (weights @ near - targets[number]) * known[number]
            _move(model.table, curvature, rows, weights, near, gradient, step)
        yield model


def _empty(table_bits: int, columns: int) -> Linear:
    return Linear(
        table=np.zeros((1 << table_bits, columns), np.float32),
        lengths=np.zeros((LENGTH_BANDS, columns), np.float32),
    )


def _move(
    table: NDArray[np.float32],
    curvature: NDArray[np.float32],
    rows: NDArray[np.int64],
    weights: NDArray[np.float32],
    near: NDArray[np.float32],
    gradient: NDArray[np.float32],
    step: float,
) -> None:
    bent = curvature.take(rows)
    bent += weights * weights * np.float32(gradient @ gradient)
    curvature[rows] = bent
    near -= np.multiply.outer(np.float32(step) * weights / np.sqrt(bent), gradient)
    table[rows] = near
