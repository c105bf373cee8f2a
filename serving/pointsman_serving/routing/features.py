"""Fields of a request that not every engine has, and which engine refuses which.

An engine answers 400 to a field that it does not have. Where another pool of the rule has it,
the request must go there: whether it is answered must not depend on load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOTHING: Final[tuple[object, ...]] = (None, False, 0, "", [], {})

# By field: the feature that it asks for, and the values that ask for nothing.
_FIELDS: Final[Mapping[str, tuple[str, tuple[object, ...]]]] = {
    "tools": ("tools", _NOTHING),
    "functions": ("tools", _NOTHING),
    "tool_choice": ("tool_choice", (None, "none", "auto")),
    "response_format": ("response_format", (None, {"type": "text"})),
    "structured_outputs": ("response_format", (None,)),
    "n": ("n", (None, 1)),
    "best_of": ("n", (None, 1)),
    "logprobs": ("logprobs", (None, False)),
    "top_logprobs": ("logprobs", (None, 0)),
    "prompt_logprobs": ("logprobs", (None,)),
    "presence_penalty": ("penalties", (None, 0)),
    "frequency_penalty": ("penalties", (None, 0)),
    "repetition_penalty": ("penalties", (None, 1)),
    "logit_bias": ("logit_bias", _NOTHING),
    "min_p": ("min_p", (None, 0)),
    "min_tokens": ("min_tokens", (None, 0)),
    "stop_token_ids": ("stop_token_ids", _NOTHING),
    "echo": ("echo", (None, False)),
    "suffix": ("suffix", (None, "")),
}

_NAMES: Final = frozenset(_FIELDS)

_REFUSED: Final[Mapping[str, frozenset[str]]] = {
    "Transformers": frozenset(feature for feature, _ in _FIELDS.values()),
    "Simulated": frozenset(
        {"n", "logprobs", "response_format", "tool_choice", "echo", "suffix", "stop_token_ids"}
    ),
}

_NONE: Final[frozenset[str]] = frozenset()


def features_of(body: Mapping[str, object]) -> frozenset[str]:
    """What a decoded body asks for by its top-level fields; empty for most requests."""
    if _NAMES.isdisjoint(body):
        return _NONE
    found = None
    for name, value in body.items():
        known = _FIELDS.get(name)
        if known is not None and value not in known[1]:
            found = found or set()
            found.add(known[0])
    return frozenset(found) if found else _NONE


def refused_by(engine: str) -> frozenset[str]:
    """The features that an engine answers 400 to; none where that is not known."""
    return _REFUSED.get(engine, _NONE)
