"""RouteBalance's testbed: four models of different sizes on 13 instances.

Source: RouteBalance (arXiv 2606.17949) for counts, slots, nominal times, prices and cache sizes.
Assumed here: an iteration grows by a tenth of its nominal time with each further batch of as many
sequences as there are slots, prompt tokens take the times below, and an instance has cache for
60,000 tokens for each slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from pointsman_serving.engines.timing import EngineProfile
from pointsman_serving.simulator.fleet import Group, trace_profile

_GROWTH: Final = 0.1
_CACHE_TOKENS_PER_SLOT: Final = 60_000
_MAX_SEQUENCES: Final = 256


class _Tier(NamedTuple):
    instances: int
    slots: int
    tpot_seconds: float
    prefill_token_seconds: float
    input_dollars_per_million: float
    output_dollars_per_million: float
    size_billions: float


_TIERS: Final[Mapping[str, _Tier]] = MappingProxyType(
    {
        "3b": _Tier(3, 10, 0.0123, 100e-6, 0.06, 0.06, 3),
        "7b": _Tier(5, 6, 0.0206, 200e-6, 0.07, 0.07, 7),
        "14b": _Tier(3, 4, 0.0184, 250e-6, 0.15, 0.15, 14),
        "72b": _Tier(2, 2, 0.0474, 350e-6, 0.38, 0.40, 72),
    }
)

MODELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "3b": "mistral-7b-instruct-v0.3",
        "7b": "qwen2.5-7b-instruct",
        "14b": "llama-3.1-8b-instruct",
        "72b": "llama-3.1-nemotron-51b-instruct",
    }
)
"""Whose measured scores stand for each pool's."""


def routebalance_testbed() -> tuple[Group, ...]:
    """The 13 instances, smallest model first."""
    groups = []
    for pool, tier in _TIERS.items():
        profile = EngineProfile(
            iteration_seconds=tier.tpot_seconds * (1.0 - _GROWTH),
            prefill_token_seconds=tier.prefill_token_seconds,
            attention_pair_seconds=0.0,
            decode_sequence_seconds=tier.tpot_seconds * _GROWTH / tier.slots,
            decode_context_token_seconds=0.0,
            kv_capacity_tokens=_CACHE_TOKENS_PER_SLOT * tier.slots,
            max_sequences=_MAX_SEQUENCES,
        )
        groups.append(
            Group(
                count=tier.instances,
                pool=pool,
                profile=trace_profile(profile),
                slots=tier.slots,
                input_dollars=tier.input_dollars_per_million / 1e6,
                output_dollars=tier.output_dollars_per_million / 1e6,
                size_billions=tier.size_billions,
            )
        )
    return tuple(groups)
