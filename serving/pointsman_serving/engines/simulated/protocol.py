"""The OpenAI bodies that a simulated engine reads, and what it writes for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from pointsman_serving.engines.continuation import (
    ARGUMENTS_FIELD,
    checked_tokens,
    refusal,
    tokens_to_continue,
    too_many_tokens,
)
from pointsman_serving.engines.openai_errors import ApiError
from pointsman_serving.engines.openai_reply import Endpoint
from pointsman_serving.engines.simulated.answer import integer_of, write_answer
from pointsman_serving.engines.simulated.reply import Generation
from pointsman_serving.engines.simulated.text import (
    TOKEN_COUNT,
    LengthModel,
    block_hashes,
    render_chat,
    seed_of,
    tokenize,
)
from pointsman_serving.engines.timing import EngineRequest

_COMPLETION_MAX_TOKENS = 16  # what OpenAI and vLLM take where a completion states none


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelText:
    """What the answers follow from."""

    model_name: str
    seed: int
    max_model_len: int
    block_tokens: int
    lengths: LengthModel


def plan_generation(
    body: Mapping[str, object],
    endpoint: Endpoint,
    text: ModelText,
    *,
    base_id: str,
    engine_id: str,
    created: int,
    sample: int,
) -> Generation:
    """Read a body and write the whole answer to it.

    Args:
        body: the decoded JSON.
        endpoint: which kind of body it is.
        text: what answers follow from.
        base_id: id of the request, for the reply's id.
        engine_id: id inside the engine, never used twice.
        created: seconds since the epoch.
        sample: a number that sets this request apart where it wants chance (temperature above 0
            and no seed).

    Raises:
        ApiError: the model is not served here, or the body asks for what cannot be done.
    """
    check_model(body, text.model_name)
    _refuse_unsupported(body)
    if endpoint is Endpoint.CHAT:
        prompt, written = _chat_prompt(body)
    else:
        prompt, written = _completion_prompt(body), 0
    limit = _output_limit(body, endpoint, len(prompt), text.max_model_len)
    sent = _tokens_sent(body, limit)
    seed = seed_of(text.seed, text.model_name, *_variation(body, sample))
    answer = write_answer(body, prompt, written, sent, limit, seed, text.lengths)
    salt = body.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise ApiError("cache_salt must be a string that is not empty.", param="cache_salt")
    stream = bool(body.get("stream"))
    options = _stream_options(body, stream=stream)
    return Generation(
        endpoint=endpoint,
        reply_id=f"{endpoint.id_prefix}-{base_id}",
        created=created,
        model_name=text.model_name,
        work=_work(engine_id, prompt, answer.tokens, len(sent), text.block_tokens, salt or ""),
        prompt=tuple(prompt),
        output=tuple(answer.tokens),
        pieces=tuple(answer.pieces),
        sent=min(len(sent), len(answer.tokens)),
        finish_reason=answer.finish_reason,
        stop_reason=answer.stop_reason,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(
            options.get("include_usage") and options.get("continuous_usage_stats")
        ),
        return_token_ids=bool(body.get("return_token_ids")),
    )


def _work(
    engine_id: str,
    prompt: Sequence[int],
    output: Sequence[int],
    sent: int,
    block_tokens: int,
    salt: str,
) -> EngineRequest | None:
    """What the engine does: the tokens that were sent before are more of the prompt to it."""
    if sent >= len(output):
        return None
    return EngineRequest(
        request_id=engine_id,
        prompt_tokens=len(prompt) + sent,
        output_tokens=len(output) - sent,
        block_hashes=block_hashes([*prompt, *output], block_tokens, salt=salt),
    )


def _output_limit(
    body: Mapping[str, object], endpoint: Endpoint, prompt_tokens: int, max_model_len: int
) -> int:
    """How many tokens the answer may have."""
    name = "max_tokens"
    if endpoint is Endpoint.CHAT and body.get("max_completion_tokens") is not None:
        name = "max_completion_tokens"
    limit = integer_of(body, name)
    if limit is None and endpoint is Endpoint.COMPLETION:
        limit = _COMPLETION_MAX_TOKENS
    if not prompt_tokens:
        raise ApiError("The prompt is empty: give at least one token.", param="prompt")
    room = max_model_len - prompt_tokens
    if room < 1:
        raise ApiError(
            f"This model's maximum context length is {max_model_len} tokens. However, your "
            f"prompt contains {prompt_tokens} input tokens, which exceeds this limit even without "
            "any output tokens. Please reduce the length of the input prompt.",
            param="input_tokens",
        )
    if limit is None:
        return room
    if limit < 1:
        raise ApiError(f"{name} must be at least 1, got {limit}.", param=name)
    if limit > max_model_len:
        raise ApiError(
            f"{name}={limit} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            param=name,
        )
    return min(limit, room)


def _tokens_sent(body: Mapping[str, object], limit: int) -> tuple[int, ...]:
    """The tokens that another replica has sent of this answer; none for a new answer."""
    try:
        asked = tokens_to_continue(body)
        if asked is None:
            return ()
        reason = refusal(body)
        if reason is not None:
            raise ValueError(reason)
        if len(asked) > limit:
            raise ValueError(too_many_tokens(len(asked), limit))
        return checked_tokens(asked, vocabulary=TOKEN_COUNT)
    except ValueError as failure:
        raise ApiError(str(failure), param=ARGUMENTS_FIELD) from None


def _stream_options(body: Mapping[str, object], *, stream: bool) -> Mapping[str, object]:
    options = body.get("stream_options")
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ApiError(
            f"stream_options must be an object, got {json.dumps(options)}.", param="stream_options"
        )
    if not stream:
        raise ApiError(
            "Stream options can only be defined when `stream=True`.", param="stream_options"
        )
    return options


def check_model(body: Mapping[str, object], model_name: str) -> None:
    """Accept the served name, or none at all, as vLLM does.

    Raises:
        ApiError: another name.
    """
    model = body.get("model")
    if model is not None and model != model_name:
        raise ApiError(
            f"The model `{model}` does not exist.",
            status=HTTPStatus.NOT_FOUND,
            kind="NotFoundError",
            param="model",
        )


# What changes an answer in ways that a made-up text cannot follow, and the values that ask for
# nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "stop_token_ids": (None, []),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "tool_choice": (None, "none", "auto"),
}


def _refuse_unsupported(body: Mapping[str, object]) -> None:
    for name, harmless in _UNSUPPORTED.items():
        value = body.get(name)
        # 1 == True and 0 == False in Python; in a request they differ.
        if not any(value == other and type(value) is type(other) for other in harmless):
            allowed = " or ".join(json.dumps(other) for other in harmless if other is not None)
            raise ApiError(
                f"The Simulated engine does not support {name}={json.dumps(value)}: "
                f"{f'give {allowed} or ' if allowed else ''}leave it out.",
                param=name,
            )


def chat_text(body: Mapping[str, object]) -> str:
    """The prompt text of a chat body.

    Raises:
        ApiError: no messages, or ones of the wrong form.
    """
    messages = body.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ApiError("messages must be a list with at least one message.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ApiError(
                f"messages[{index}] must be an object with a role, got {json.dumps(message)}.",
                param="messages",
            )
    return render_chat(
        messages,
        tools=body.get("tools"),
        add_generation_prompt=body.get("add_generation_prompt") is not False,
        continue_final_message=body.get("continue_final_message") is True,
    )


def _chat_prompt(body: Mapping[str, object]) -> tuple[list[int], int]:
    """Prompt tokens, and how many of them are the beginning of the answer to write."""
    prompt = tokenize(chat_text(body))
    if body.get("continue_final_message") is not True:
        return prompt, 0
    messages = body["messages"]
    final = messages[-1] if isinstance(messages, Sequence) else None
    if not isinstance(final, Mapping) or final["role"] != "assistant":
        raise ApiError(
            "continue_final_message needs a last message with the role assistant.",
            param="continue_final_message",
        )
    if body.get("add_generation_prompt") is True:
        raise ApiError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            param="continue_final_message",
        )
    head = render_chat(
        messages[:-1] if isinstance(messages, Sequence) else (), tools=body.get("tools")
    )
    return prompt, len(prompt) - len(tokenize(head))


def _completion_prompt(body: Mapping[str, object]) -> list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return tokenize(prompt)
    if isinstance(prompt, list):
        return known_tokens(prompt, param="prompt")
    raise ApiError(
        f"prompt must be one text or one list of token ids, got {json.dumps(prompt)[:80]}.",
        param="prompt",
    )


def known_tokens(tokens: Sequence[object], *, param: str) -> list[int]:
    """Check a list of token ids.

    Raises:
        ApiError: something that is no id; several prompts in one request are not served.
    """
    known: list[int] = []
    for token in tokens:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < TOKEN_COUNT:
            raise ApiError(
                f"{param} must hold token ids from 0 to {TOKEN_COUNT - 1} "
                f"(and one prompt a request), got {json.dumps(token)[:80]}.",
                param=param,
            )
        known.append(token)
    return known


def _variation(body: Mapping[str, object], sample: int) -> tuple[object, ...]:
    """What beside the model makes this answer; nothing at temperature 0."""
    temperature = body.get("temperature")
    if temperature is None:
        temperature = 1.0
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or temperature < 0:
        raise ApiError(
            f"temperature must be non-negative, got {json.dumps(temperature)}.",
            param="temperature",
        )
    if temperature == 0:
        return ()
    seed = integer_of(body, "seed")
    return ("seed", seed) if seed is not None else ("sample", sample)
