"""How long a replica takes: learned from what the gateway sees, pool first, replica second.

A pool has two lines: time to first token against the prefill tokens that must be computed
before it, and time per output token against the sequences in the batch. A replica is its pool
times a factor. The factor is shrunk towards 1, so a new replica needs no profile, and what
noise can explain is no difference at all: without that, the replica that was measured slow
once would never be measured again.
"""

from __future__ import annotations

import math
from typing import Final

from pointsman_serving.routing.line import Line

PRIOR_BASE_SECONDS: Final = 0.03
PRIOR_SECONDS_PER_TOKEN: Final = 1e-4
PRIOR_STEP_SECONDS: Final = 0.015
PRIOR_STEP_SECONDS_PER_SEQUENCE: Final = 5e-5

_INDIFFERENCE: Final = 0.35
"""Natural logarithm of the factor that noise explains: 1.42."""
_OUTLIER: Final = 1.4
_FACTOR_STRENGTH: Final = 4.0
_FACTOR_MEMORY: Final = 32.0
_FACTOR_HALF_LIFE_SECONDS: Final = 60.0
COMPARED_SAMPLES: Final = 12
"""Replicas are compared with their pool once it is known so well: not with its prior."""
TRUST_SAMPLES: Final = 8
TRUST_SECONDS: Final = 30.0


class Factor:
    """How many times slower than its pool one replica is."""

    __slots__ = ("_mean", "_seen_at", "_weight", "usual")

    def __init__(self) -> None:
        self.usual = True
        """Whether noise explains it: it is 1 then at any time."""
        self._mean = 0.0
        self._weight = 0.0
        self._seen_at = 0.0

    def learn(self, observed_seconds: float, expected_seconds: float, *, now: float) -> None:
        """Compare an observation with what the pool's line expected; both positive."""
        ratio = math.log(observed_seconds / expected_seconds)
        ratio = min(max(ratio, -_OUTLIER), _OUTLIER)
        self._weight = min(self._weight + 1.0, _FACTOR_MEMORY)
        self._mean += (ratio - self._mean) / (self._weight + _FACTOR_STRENGTH)
        self._seen_at = now
        self.usual = -_INDIFFERENCE <= self._mean <= _INDIFFERENCE

    def at(self, now: float) -> float:
        """The factor to reckon with; what was not seen for long is believed less."""
        if self.usual:
            return 1.0
        mean = self._mean
        age = max(0.0, now - self._seen_at)
        mean *= 2.0 ** (-age / _FACTOR_HALF_LIFE_SECONDS)
        if mean > _INDIFFERENCE:
            return math.exp(mean - _INDIFFERENCE)
        if mean < -_INDIFFERENCE:
            return math.exp(mean + _INDIFFERENCE)
        return 1.0

    @property
    def learned(self) -> float:
        """The raw factor, for metrics."""
        return math.exp(self._mean)


class PoolLatency:
    """The two lines that a pool's replicas share.

    Args:
        fleet: the lines of all pools together. Until a pool was observed itself it is taken for
            them, or for the prior where that is faster: what is thought slow is never tried.
    """

    __slots__ = (
        "_decode",
        "_fleet",
        "_prefill",
        "_seen_at",
        "learned_decode",
        "learned_prefill",
        "unusual",
    )

    def __init__(self, fleet: PoolLatency | None = None) -> None:
        self._fleet = fleet
        self._prefill: Line | None = None
        self._decode: Line | None = None
        self.learned_prefill: tuple[float, float] | None = None
        """``prefill`` where it was learned from the pool's own answers."""
        self.learned_decode: tuple[float, float] | None = None
        """``decode`` where it was."""
        self.unusual = 0
        """Replicas that are not as fast as the pool."""
        self._seen_at = -math.inf

    @property
    def learned(self) -> bool:
        """Whether both lines are the pool's own."""
        return self.learned_prefill is not None and self.learned_decode is not None

    @property
    def prefill(self) -> tuple[float, float]:
        """Seconds to the first token, and seconds more per token to compute before it."""
        if self.learned_prefill is not None:
            return self.learned_prefill
        if self._fleet is None:
            return PRIOR_BASE_SECONDS, PRIOR_SECONDS_PER_TOKEN
        base, per_token = self._fleet.prefill
        return min(base, PRIOR_BASE_SECONDS), min(per_token, PRIOR_SECONDS_PER_TOKEN)

    @property
    def decode(self) -> tuple[float, float]:
        """Seconds per output token, and seconds more per sequence in the batch."""
        if self.learned_decode is not None:
            return self.learned_decode
        if self._fleet is None:
            return PRIOR_STEP_SECONDS, PRIOR_STEP_SECONDS_PER_SEQUENCE
        step, per_sequence = self._fleet.decode
        return (
            min(step, PRIOR_STEP_SECONDS),
            min(per_sequence, PRIOR_STEP_SECONDS_PER_SEQUENCE),
        )

    @property
    def prefill_samples(self) -> int:
        """How many times to first token were learned."""
        return 0 if self._prefill is None else self._prefill.samples

    @property
    def decode_samples(self) -> int:
        """How many times per output token were learned."""
        return 0 if self._decode is None else self._decode.samples

    def prefill_at(self, tokens_ahead: float) -> float:
        """Expected seconds to the first token."""
        base, per_token = self.prefill
        return base + per_token * tokens_ahead

    def decode_at(self, batch: float) -> float:
        """Expected seconds per output token."""
        step, per_sequence = self.decode
        return step + per_sequence * batch

    def learn_prefill(self, tokens_ahead: float, seconds: float, *, now: float) -> None:
        """Take one time to first token."""
        if self._prefill is None:
            base, per_token = self.prefill
            self._prefill = Line(intercept=base, slope=per_token, scale=256.0, reach=4096.0)
        self._prefill.learn(tokens_ahead, seconds)
        self.learned_prefill = self._prefill.intercept, self._prefill.slope
        self._seen_at = now
        if self._fleet is not None:
            self._fleet.learn_prefill(tokens_ahead, seconds, now=now)

    def learn_decode(self, batch: float, seconds_per_token: float) -> None:
        """Take one time per output token."""
        if self._decode is None:
            step, per_sequence = self.decode
            self._decode = Line(intercept=step, slope=per_sequence, scale=4.0, reach=64.0)
        self._decode.learn(batch, seconds_per_token)
        self.learned_decode = self._decode.intercept, self._decode.slope
        if self._fleet is not None:
            self._fleet.learn_decode(batch, seconds_per_token)

    def trusted(self, now: float) -> bool:
        """Whether a request may be refused on this prediction alone.

        A prior or an old reading is no ground for that: refused requests teach nothing, so the
        refusal would last for ever.
        """
        return self.prefill_samples >= TRUST_SAMPLES and now - self._seen_at <= TRUST_SECONDS


class ReplicaLatency:
    """One replica's factors on its pool's lines."""

    __slots__ = ("decode_factor", "pool", "prefill_factor", "usual")

    def __init__(self, pool: PoolLatency) -> None:
        self.pool = pool
        self.prefill_factor = Factor()
        self.decode_factor = Factor()
        self.usual = True
        """Whether both factors are 1 at any time."""

    def learn_prefill(self, tokens_ahead: float, seconds: float, *, now: float) -> None:
        """Learn one time to first token.

        Args:
            tokens_ahead: uncached tokens of the request and of those that were before it.
            seconds: from dispatch to first token; not positive ones are ignored.
        """
        if seconds <= 0.0:
            return
        pool = self.pool
        pool.learn_prefill(tokens_ahead, seconds, now=now)
        if pool.prefill_samples >= COMPARED_SAMPLES:
            expected = max(pool.prefill_at(tokens_ahead), 1e-6)
            self.prefill_factor.learn(seconds, expected, now=now)
            self._note_usual()

    def learn_decode(self, batch: float, seconds_per_token: float, *, now: float) -> None:
        """Learn one time per output token at an average batch; not positive ones are ignored."""
        if seconds_per_token <= 0.0:
            return
        pool = self.pool
        pool.learn_decode(batch, seconds_per_token)
        if pool.decode_samples >= COMPARED_SAMPLES:
            expected = max(pool.decode_at(batch), 1e-7)
            self.decode_factor.learn(seconds_per_token, expected, now=now)
            self._note_usual()

    def _note_usual(self) -> None:
        usual = self.prefill_factor.usual and self.decode_factor.usual
        self.pool.unusual += self.usual - usual
        self.usual = usual
