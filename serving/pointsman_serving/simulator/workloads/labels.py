"""The workload axis of WRP as labels on requests: what kind of traffic each one is.

Source: the Workload-Router-Pool architecture: chat or agent, single or multi-turn, warm or cold,
heavy on prefill or on decode. Where the cuts lie is this project's reading.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pointsman_serving.simulator.ideal import ideal_cached_tokens
from pointsman_serving.simulator.workloads.enlarge import session_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman_serving.simulator.request import SimRequest

_WARM_SHARE: Final = 0.5
"""Of the prompt that earlier requests had."""
_PREFILL_TOKENS_PER_ANSWER_TOKEN: Final = 10
"""Prompt tokens that cost an engine about as much as one answer token does."""


def labelled(requests: Sequence[SimRequest]) -> list[SimRequest]:
    """The same requests, each with its labels; an ``interaction`` that is there stays.

    - ``interaction``: chat or agent
    - ``turns``: single-turn or multi-turn, by whether its session has others
    - ``prefix``: warm where earlier requests had half of the prompt, else cold
    - ``weight``: prefill-heavy or decode-heavy
    """
    sessions = Counter(session_key(each) for each in requests)
    ideal = ideal_cached_tokens(requests)
    return [
        replace(
            each,
            labels={
                "interaction": "chat",
                **each.labels,
                "turns": "multi-turn" if sessions[session_key(each)] > 1 else "single-turn",
                "prefix": "warm" if ideal[each] >= _WARM_SHARE * each.prompt_tokens else "cold",
                "weight": _weight(each, ideal[each]),
            },
        )
        for each in requests
    ]


def _weight(request: SimRequest, cached_tokens: int) -> str:
    fresh = request.prompt_tokens - cached_tokens
    heavy = fresh > _PREFILL_TOKENS_PER_ANSWER_TOKEN * request.output_tokens
    return "prefill-heavy" if heavy else "decode-heavy"
