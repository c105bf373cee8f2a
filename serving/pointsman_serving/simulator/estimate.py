"""How long work takes on an engine of a known profile: what rules that predict TTFT reckon with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsman_serving.engines.timing import EngineProfile
    from pointsman_serving.simulator.arm import InstanceView


def prefill_seconds(profile: EngineProfile, prompt_tokens: int, cached_tokens: int) -> float:
    """Time that the tokens of a prompt take which are not cached, in an iteration shared by all.

    The fixed cost of iterations is left out; see ``iterations``.
    """
    fresh = prompt_tokens - cached_tokens
    pairs = fresh * (cached_tokens + (fresh + 1) / 2)
    return profile.prefill_token_seconds * fresh + profile.attention_pair_seconds * pairs


def iterations(profile: EngineProfile, tokens: int) -> int:
    """Iterations that computing so many prompt tokens needs, if nothing else is computed."""
    return -(-tokens // profile.max_batched_tokens)


def iteration_seconds(view: InstanceView) -> float:
    """Time of an iteration in which all that runs decodes and nothing else is computed."""
    profile = view.profile
    return (
        profile.iteration_seconds
        + profile.decode_sequence_seconds * view.running
        + profile.decode_context_token_seconds * view.context_tokens
    )


def wait_seconds(view: InstanceView) -> float:
    """Time until all prompts that the instance has now are computed."""
    tokens = view.pending_prefill_tokens
    return view.pending_prefill_seconds + iterations(view.profile, tokens) * iteration_seconds(view)


def ttft_seconds(view: InstanceView, prompt_tokens: int, cached_tokens: int) -> float:
    """Estimated time to the first token of a request sent to the instance now."""
    tokens = view.pending_prefill_tokens + prompt_tokens - cached_tokens
    return (
        view.pending_prefill_seconds
        + prefill_seconds(view.profile, prompt_tokens, cached_tokens)
        + iterations(view.profile, tokens) * iteration_seconds(view)
    )
