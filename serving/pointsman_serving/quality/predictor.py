"""The quality of every model's answer to a prompt, predicted from the prompt's bytes.

A prompt is first told apart by its task, softly; what each model scores in each task then gives
its quality:

    quality(prompt, model) = sum over tasks of p(task | prompt) * mean score(task, model) + rest

``p`` is a softmax over hashed windows of bytes (``windows``), the means are shrunk to the
model's own mean, and the rest, a linear term per model, is there only if the fit found that it
helps. Source: the hashed n-gram ridge of the fused prototype. Predicting scores straight from
n-grams, as that does, leaves most of what the tasks tell unused (docs/quality.md has both).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from pointsman_serving.quality.windows import SAMPLE_BYTES, length_band, window_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

TABLE_BITS: Final = 14
MOST_MODELS: Final = 256
MOST_TASKS: Final = 64
UNSTATED_TASK: Final = "Default"
"""The task of requests that state none; a file of scores may call its own tasks so."""

_ONES: Final = np.ones(2 * SAMPLE_BYTES, np.float32)
_DIMMEST: Final = -20.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """What a fit has learned; R = 2**table_bits rows, T tasks, M models.

    ``columns`` of the tables are the T tasks' logits and, where the fit found a use for it, one
    term per model: C = T or T + M.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    table_bits: int = TABLE_BITS
    table: NDArray[np.int8]
    """[R, C], in units of ``units``."""
    units: NDArray[np.float32]
    """[C]."""
    lengths: NDArray[np.float32]
    """[32, C]: added by the prompt's length; the tasks' own shares are in it."""
    means: NDArray[np.float32]
    """[T, M]: calibrated, in [0, 1]."""
    priors: NDArray[np.float32]
    """[M]: the model's mean over all tasks."""
    trained_at: str
    """ISO 8601, UTC."""
    prompts: int
    scores: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Errors on prompts that the fold's fit had not seen; see ``measure``."""


class QualityPredictor:
    """Predicts for all its models at once. Immutable: a newer one takes its place in whole.

    Args:
        weights: from ``fit`` or ``artefact.unpack``.
        offsets: [T, M], what feedback adds to the means; see ``feedback``.
        columns: [R, C], the table in its own units, where another predictor has it already.
    """

    __slots__ = ("_columns", "_means", "_rests", "_task_rows", "_tasks", "models", "weights")

    def __init__(
        self,
        weights: Weights,
        offsets: NDArray[np.float32] | None = None,
        *,
        columns: NDArray[np.float32] | None = None,
    ) -> None:
        if columns is None:
            columns = weights.table.astype(np.float32) * weights.units
        means = weights.means if offsets is None else (weights.means + offsets).clip(0.0, 1.0)
        self.weights = weights
        self.models = weights.models
        self._columns = columns
        self._means = np.ascontiguousarray(means, np.float32)
        self._tasks = len(weights.tasks)
        self._rests = columns.shape[1] > self._tasks
        self._task_rows = {
            task: dict(zip(weights.models, row.tolist(), strict=True))
            for task, row in zip(weights.tasks, self._means, strict=True)
        }

    def adjusted(self, offsets: NDArray[np.float32]) -> QualityPredictor:
        """The same with feedback's offsets [T, M] in place of those it had; shares the table."""
        return QualityPredictor(self.weights, offsets, columns=self._columns)

    def predict(self, text: str, task: str = "") -> dict[str, float]:
        """The expected quality in [0, 1] of each model's answer; the caller's own to keep.

        Args:
            text: the prompt; of more than ``SAMPLE_BYTES`` bytes a sample is read.
            task: the request's own word on its task. A task that was trained on is believed,
                whatever the text is like; any other word, ``Default`` too, is ignored.
        """
        row = self._task_rows.get(task) if task != UNSTATED_TASK else None
        if row is not None and not self._rests:
            return row.copy()
        columns = self._activations(text)
        if row is not None:
            qualities = self._means[self.weights.tasks.index(task)].copy()
        else:
            qualities = self._shares(columns) @ self._means
        if self._rests:
            qualities += columns[self._tasks :]
        return dict(zip(self.models, qualities.clip(0.0, 1.0).tolist(), strict=True))

    def quality(self, text: str, model: str, task: str = "") -> float | None:
        """One model's expected quality; None for a model that was never scored."""
        return self.predict(text, task).get(model)

    def task_shares(self, text: str) -> dict[str, float]:
        """How likely the prompt is of each task; sums to 1."""
        shares = self._shares(self._activations(text)).tolist()
        return dict(zip(self.weights.tasks, shares, strict=True))

    def shares_of(self, text: str, task: str = "") -> NDArray[np.float32]:
        """The same as an array [T], for feedback; a known task has all of it."""
        if task != UNSTATED_TASK and task in self._task_rows:
            shares = np.zeros(self._tasks, np.float32)
            shares[self.weights.tasks.index(task)] = 1.0
            return shares
        return self._shares(self._activations(text))

    def _activations(self, text: str) -> NDArray[np.float32]:
        """[C]: the tasks' logits and the models' rests."""
        rows = window_rows(text, self.weights.table_bits)
        count = len(rows)
        # A product with ones adds the rows ten times as fast as numpy's sum does.
        total: NDArray[np.float32] = _ONES[:count] @ self._columns.take(rows, axis=0, mode="clip")
        total *= count**-0.5
        total += self.weights.lengths[length_band(text)]
        return total

    def _shares(self, columns: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = columns[: self._tasks]
        shares: NDArray[np.float32] = np.exp(np.maximum(logits - logits.max(), _DIMMEST))
        shares /= shares.sum()
        return shares
