"""Going on with an answer that another replica began: what a request asks for, and what forbids it.

A request with ``vllm_xargs: {"pointsman_continue": [ids]}`` is answered as if exactly these tokens
had already been generated for it: they are replayed, then new ones follow. The engine computes
them as more of the prompt. That is the same only where nothing but the counts (``max_tokens``,
``min_tokens``) and the text (stop strings, parsers) depends on which tokens are prompt and which
are answer, so whatever makes the sampler look at the answer alone is refused.

Pure, so that a gateway knows beforehand which streams it could continue.
Source: vLLM 0.32, ``v1/sample`` and ``v1/core/sched/utils.check_stop``. Its repetition penalty
counts prompt and answer together, and logit_bias, allowed_token_ids, min_p, top_k and top_p look
at neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ARGUMENTS_FIELD = "vllm_xargs"
CONTINUE_ARGUMENT = "pointsman_continue"
"""Inside ``vllm_xargs``: the token ids of the answer so far; an empty list says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """A field of a body that makes the answer depend on which tokens were generated."""

    harmless: tuple[object, ...]
    """Values that ask for nothing, beside the field's absence."""
    reason: str
    """What stands in the way, as the end of a sentence."""


_SEVERAL = "several answers cannot be continued at once"
_GRAMMAR = "its grammar has to see the answer from its first token"
_OUTPUT = "it looks at the answer's own tokens"
_PROBABILITIES = "the probabilities of the tokens sent are lost with their replica"
_TRANSFER = "the tokens sent are not part of what is transferred"

OBSTACLES: Mapping[str, Obstacle] = {
    "n": Obstacle(harmless=(None, 1), reason=_SEVERAL),
    "best_of": Obstacle(harmless=(None, 1), reason=_SEVERAL),
    "use_beam_search": Obstacle(harmless=(None, False), reason=_SEVERAL),
    "echo": Obstacle(harmless=(None, False), reason="the prompt is not part of the tokens sent"),
    "logprobs": Obstacle(harmless=(None, False), reason=_PROBABILITIES),
    "top_logprobs": Obstacle(harmless=(None, 0), reason=_PROBABILITIES),
    "logprob_token_ids": Obstacle(harmless=(None, []), reason=_PROBABILITIES),
    "prompt_logprobs": Obstacle(harmless=(None,), reason=_PROBABILITIES),
    "prompt_embeds": Obstacle(harmless=(None,), reason="tokens cannot follow embeddings"),
    "presence_penalty": Obstacle(harmless=(None, 0, 0.0), reason=_OUTPUT),
    "frequency_penalty": Obstacle(harmless=(None, 0, 0.0), reason=_OUTPUT),
    "bad_words": Obstacle(harmless=(None, []), reason=_OUTPUT),
    "repetition_detection": Obstacle(harmless=(None,), reason=_OUTPUT),
    "thinking_token_budget": Obstacle(harmless=(None, -1), reason=_OUTPUT),
    "watermarking": Obstacle(harmless=(None, False), reason=_OUTPUT),
    "include_reasoning": Obstacle(
        harmless=(None, True), reason="it hides the tokens behind the text"
    ),
    "structured_outputs": Obstacle(harmless=(None,), reason=_GRAMMAR),
    "guided_json": Obstacle(harmless=(None,), reason=_GRAMMAR),
    "guided_regex": Obstacle(harmless=(None,), reason=_GRAMMAR),
    "guided_choice": Obstacle(harmless=(None,), reason=_GRAMMAR),
    "guided_grammar": Obstacle(harmless=(None,), reason=_GRAMMAR),
    "response_format": Obstacle(harmless=(None, {"type": "text"}), reason=_GRAMMAR),
    "tool_choice": Obstacle(harmless=(None, "none", "auto"), reason=_GRAMMAR),
    "kv_transfer_params": Obstacle(harmless=(None, {}), reason=_TRANSFER),
    "ec_transfer_params": Obstacle(harmless=(None, {}), reason=_TRANSFER),
}
"""Every field that forbids to continue an answer, of chat completions and of completions.

vLLM, asked to leave reasoning out, gives no token ids either, so that nobody could go on from them.
"""


_ORDER = {name: place for place, name in enumerate(OBSTACLES)}


def refusal(body: Mapping[str, object]) -> str | None:
    """Why an answer to this body cannot be continued from its tokens; None where it can be.

    Args:
        body: a decoded body of ``/v1/chat/completions`` or ``/v1/completions``, with or without
            the tokens themselves, which are not looked at.
    """
    # In the table's order, so that the same body always gets the same sentence.
    for name in sorted(body.keys() & OBSTACLES.keys(), key=_ORDER.__getitem__):
        obstacle, value = OBSTACLES[name], body[name]
        # 1 == True and 0 == False in Python; in a request they differ.
        if not any(value == other and type(value) is type(other) for other in obstacle.harmless):
            return _sentence(f"{name}={_shown(value)}", obstacle.reason)
    if any(_is_strict(tool) for tool in _list(body.get("tools"))):
        return _sentence("a tool with strict=true", _GRAMMAR)
    prompt = _list(body.get("prompt"))
    if len(prompt) > 1 and any(not isinstance(part, int) for part in prompt):
        return _sentence("a list of prompts", _SEVERAL)
    arguments = body.get(ARGUMENTS_FIELD)
    others = sorted(set(arguments) - {CONTINUE_ARGUMENT}) if isinstance(arguments, Mapping) else []
    if others:
        return _sentence(f"{ARGUMENTS_FIELD}.{others[0]}", "what it does to the answer is unknown")
    return None


def tokens_to_continue(body: Mapping[str, object]) -> tuple[int, ...] | None:
    """The answer so far that a body gives; None where it asks for a new one.

    Raises:
        ValueError: they are no list of token ids.
    """
    arguments = body.get(ARGUMENTS_FIELD)
    if not isinstance(arguments, Mapping) or CONTINUE_ARGUMENT not in arguments:
        return None
    return checked_tokens(arguments[CONTINUE_ARGUMENT])


def checked_tokens(given: object, *, vocabulary: int | None = None) -> tuple[int, ...]:
    """The token ids of an answer so far.

    Args:
        given: what a request has as ``pointsman_continue``.
        vocabulary: ids are below this; any where None.

    Raises:
        ValueError: something else than a list of ids.
    """
    where = f"{ARGUMENTS_FIELD}.{CONTINUE_ARGUMENT}"
    if not isinstance(given, list | tuple):
        raise ValueError(f"{where} is {_shown(given)}: give a list of token ids")
    below = f"0 to {vocabulary - 1}" if vocabulary is not None else "0 and above"
    for token in given:
        if (
            not isinstance(token, int)
            or isinstance(token, bool)
            or token < 0
            or (vocabulary is not None and token >= vocabulary)
        ):
            raise ValueError(
                f"{where} has {_shown(token)}: give the ids of the tokens sent so far, {below}"
            )
    return tuple(given)


def too_many_tokens(sent: int, limit: int) -> str:
    """What is wrong with more tokens than the answer may have."""
    return (
        f"{ARGUMENTS_FIELD}.{CONTINUE_ARGUMENT} has {sent} tokens and the answer may have {limit}: "
        "give the tokens of the same request's answer"
    )


def _sentence(what: str, reason: str) -> str:
    return (
        f"an answer with {what} cannot be continued: {reason}; "
        f"leave it or {ARGUMENTS_FIELD}.{CONTINUE_ARGUMENT} out"
    )


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _is_strict(tool: object) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return isinstance(function, Mapping) and bool(function.get("strict"))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
