"""A decision as plain JSON values, for ``/v1/route/explain`` and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsman_serving.routing.types import Candidate, Decision


def explain(decision: Decision) -> dict[str, object]:
    """Outcome, reason, winner and every candidate with its terms; seconds, tokens, dollars."""
    return {
        "outcome": decision.outcome.value,
        "reason": decision.reason,
        "policy": decision.policy,
        "rule": decision.rule,
        "winner": None if decision.winner is None else _candidate(decision.winner),
        "candidates": [_candidate(candidate) for candidate in decision.candidates],
    }


def _candidate(candidate: Candidate) -> dict[str, object]:
    return {
        "pool": candidate.key.pool,
        "replica": candidate.key.replica,
        "quality": candidate.quality,
        "predicted_ttft_seconds": candidate.predicted_ttft_seconds,
        "predicted_tpot_seconds": candidate.predicted_tpot_seconds,
        "predicted_latency_seconds": candidate.predicted_latency_seconds,
        "predicted_cached_tokens": candidate.predicted_cached_tokens,
        "predicted_cost_dollars": candidate.predicted_cost_dollars,
        "in_flight": candidate.in_flight,
        "score": candidate.score,
        "meets_slo": candidate.meets_slo,
        "rejected": None if candidate.rejected is None else candidate.rejected.value,
    }
