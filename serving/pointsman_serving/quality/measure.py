"""How far predicted qualities are from measured scores.

What routing asks of a predictor is which model is better and by how much: the error of the
*differences* between models. A predictor may be right about the level and useless, or wrong
about how hard a prompt is for everybody and choose well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CALIBRATION_BINS: Final = 10


def measure(
    predicted: NDArray[np.float64], scores: NDArray[np.float64], priors: NDArray[np.float64]
) -> dict[str, float]:
    """The errors of predicted qualities.

    Args:
        predicted: [N, M].
        scores: [N, M]; NaN where a model was not scored.
        priors: [M]: for what choosing the best constant would lose.

    Returns:
        level_mae, level_rmse; difference_mae and difference_rmse over all pairs of models of a
        prompt; regret: the best score of a prompt less that of the model predicted best, mean
        over prompts (regret_prior: of the model that is best on average); calibration_error:
        the mean distance of prediction and score over ten bins of equal size.
    """
    known = np.isfinite(scores)
    errors = np.where(known, predicted - scores, 0.0)
    count = max(int(known.sum()), 1)
    squared, absolute, pairs = _differences(errors, known)
    return {
        "level_mae": float(np.abs(errors).sum() / count),
        "level_rmse": float(np.sqrt((errors**2).sum() / count)),
        "difference_mae": absolute / max(pairs, 1),
        "difference_rmse": float(np.sqrt(squared / max(pairs, 1))),
        "regret": regret(predicted, scores),
        "regret_prior": regret(np.broadcast_to(priors, predicted.shape), scores),
        "calibration_error": _calibration_error(predicted[known], scores[known]),
    }


def difference_rmse(predicted: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Root mean square error of the differences between the models of a prompt."""
    known = np.isfinite(scores)
    # Over all pairs of a row, the squared differences of its errors add up to n * variance * n.
    errors = np.where(known, predicted - scores, 0.0)
    counts = known.sum(axis=1)
    squared = float((counts * (errors**2).sum(axis=1) - errors.sum(axis=1) ** 2).sum())
    pairs = float((counts * (counts - 1) / 2).sum())
    return float(np.sqrt(max(squared, 0.0) / max(pairs, 1.0)))


def regret(predicted: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """What choosing the model predicted best loses against hindsight, mean over prompts."""
    known = np.isfinite(scores)
    rows = np.flatnonzero(known.any(axis=1))
    if not len(rows):
        return 0.0
    chosen = np.where(known, predicted, -np.inf)[rows].argmax(axis=1)
    best = np.where(known, scores, -np.inf)[rows].max(axis=1)
    return float((best - scores[rows, chosen]).mean())


def _differences(
    errors: NDArray[np.float64], known: NDArray[np.bool_]
) -> tuple[float, float, float]:
    squared = absolute = pairs = 0.0
    for first in range(errors.shape[1]):
        others = slice(first + 1, None)
        both = known[:, first : first + 1] & known[:, others]
        gaps = np.where(both, errors[:, first : first + 1] - errors[:, others], 0.0)
        squared += float((gaps**2).sum())
        absolute += float(np.abs(gaps).sum())
        pairs += float(both.sum())
    return squared, absolute, pairs


def _calibration_error(predicted: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    if not len(predicted):
        return 0.0
    order = predicted.argsort(kind="stable")
    bins = np.array_split(order, min(CALIBRATION_BINS, len(order)))
    gaps = [abs(float(predicted[b].mean() - scores[b].mean())) * len(b) for b in bins]
    return sum(gaps) / len(predicted)
