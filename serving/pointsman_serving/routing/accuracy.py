"""How well cached tokens are predicted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Accuracy:
    """The predictions of one kind; only ever counts up."""

    predictions: int = 0
    """Requests that were sent with one."""
    judged: int = 0
    """Those whose engine counted the cached tokens in the end."""
    error_tokens: float = 0.0
    """Sum over these of how far the prediction was off, either way."""

    def judge(self, predicted_tokens: float, actual_tokens: int) -> None:
        """Take the engine's own count."""
        self.judged += 1
        self.error_tokens += abs(predicted_tokens - actual_tokens)
