"""What answers were found to be worth moves the means by task: a little, for a while.

Somebody scores an answer (a judge model, a test, a person): from 0 to 1, for a model and a prompt.
The error of the prediction is added to what is known of (task, model), in the shares in which the
prompt is of each task. What comes of it is bounded in three ways:

- Evidence halves in ``half_life_seconds``: without feedback the trained means come back.
- One source (a tenant) weighs at most ``most_source_weight`` scores in a mean that starts with
  ``prior_weight`` scores of no error, however many it sends: alone it moves a mean by at most
  w / (w + p) of its own error, a fifth by default.
- No mean is moved by more than ``most_offset``.

Sources beyond ``most_sources`` push out the one that was silent longest.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pointsman_serving.quality.predictor import QualityPredictor, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackLimits:
    """How much feedback may move."""

    half_life_seconds: float = 86_400.0
    """After that long a score weighs half."""
    prior_weight: float = 40.0
    """How many scores the trained mean weighs."""
    most_source_weight: float = 10.0
    """How many scores one source weighs at most in a mean."""
    most_offset: float = 0.25
    """How far a mean is moved at most."""
    most_sources: int = 256


class _Evidence:
    __slots__ = ("at", "errors", "weights")

    def __init__(self, shape: tuple[int, int], now: float) -> None:
        self.errors = np.zeros(shape)
        self.weights = np.zeros(shape)
        self.at = now

    def decay(self, now: float, half_life_seconds: float) -> None:
        # A clock that jumps back must not make old evidence grow.
        passed = now - self.at
        if passed > 0:
            kept = 0.5 ** (passed / half_life_seconds)
            self.errors *= kept
            self.weights *= kept
            self.at = now


class Feedback:
    """Collects scores of answers; ``offsets`` are what a predictor is adjusted by.

    Args:
        weights: the predictor's; feedback is measured against these, not against what it has
            moved itself, so that it settles instead of running away. A newer predictor gets a
            new ``Feedback``: its means have seen what this one knows, or they have not.
    """

    def __init__(self, weights: Weights, limits: FeedbackLimits | None = None) -> None:
        self._limits = limits or FeedbackLimits()
        self._model_of = {model: index for index, model in enumerate(weights.models)}
        self._means = weights.means.astype(np.float64)
        self._sources: OrderedDict[str, _Evidence] = OrderedDict()

    @property
    def sources(self) -> int:
        """How many sources are remembered."""
        return len(self._sources)

    def learn(
        self,
        predictor: QualityPredictor,
        *,
        text: str,
        model: str,
        score: float,
        source: str,
        now: float,
        task: str = "",
    ) -> bool:
        """Count one score of an answer.

        Args:
            predictor: tells which tasks the prompt is of.
            source: who says so, such as the tenant; never taken from the request's body.
            now: seconds, monotonic.

        Returns:
            False where it was not counted: the model is not the predictor's, or the score is not
            a number from 0 to 1.
        """
        column = self._model_of.get(model)
        if column is None or not 0.0 <= score <= 1.0 or not math.isfinite(now):
            return False
        shares = predictor.shares_of(text, task).astype(np.float64)
        error = score - float(shares @ self._means[:, column])
        evidence = self._evidence(source, now)
        evidence.weights[:, column] += shares
        evidence.errors[:, column] += shares * error
        return True

    def offsets(self, now: float) -> NDArray[np.float32]:
        """[T, M]: what to add to the means, within ``most_offset``."""
        limits = self._limits
        errors = np.zeros_like(self._means)
        weights = np.full_like(self._means, limits.prior_weight)
        for evidence in self._sources.values():
            evidence.decay(now, limits.half_life_seconds)
            # A source's mean error counts for as many scores as it may weigh.
            capped = np.minimum(1.0, limits.most_source_weight / np.maximum(evidence.weights, 1e-9))
            errors += evidence.errors * capped
            weights += evidence.weights * capped
        bound = limits.most_offset
        return (errors / weights).clip(-bound, bound).astype(np.float32)

    def _evidence(self, source: str, now: float) -> _Evidence:
        evidence = self._sources.get(source)
        if evidence is None:
            if len(self._sources) >= self._limits.most_sources:
                self._sources.popitem(last=False)
            evidence = self._sources[source] = _Evidence(self._means.shape, now)
        else:
            self._sources.move_to_end(source)
            evidence.decay(now, self._limits.half_life_seconds)
        return evidence
