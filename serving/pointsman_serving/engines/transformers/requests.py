"""From an OpenAI body to what the engine is to do, without the engine. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pointsman_serving.engines.continuation import (
    ARGUMENTS_FIELD,
    checked_tokens,
    refusal,
    tokens_to_continue,
    too_many_tokens,
)
from pointsman_serving.engines.openai_errors import ApiError
from pointsman_serving.engines.openai_reply import Endpoint

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of ``max_tokens`` for text completions."""
_MAX_STOPS = 16


def bad_request(message: str, param: str | None = None) -> ApiError:
    """The error for a body that cannot be served."""
    return ApiError(message, param=param)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0
    """0: always the likeliest."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request, checked; exactly one of ``messages``, ``text`` and ``token_ids`` is there."""

    endpoint: Endpoint
    sampling: Sampling
    max_tokens: int | None
    """None: as many as the context has room for."""
    messages: tuple[dict[str, Any], ...] | None = None
    template_arguments: Mapping[str, object]
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False
    cache_salt: str = ""
    """Prefix pages are shared only with requests of the same salt; empty: with those without."""
    return_token_ids: bool = False
    sent: tuple[int, ...] = ()
    """The tokens of the answer that another replica has sent already."""


# Values that mean "not used", which clients send out of habit.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "stop_token_ids": (None, []),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
}


def read_request(
    body: Mapping[str, Any], endpoint: Endpoint, *, model_name: str
) -> GenerationRequest:
    """Check a decoded body.

    Fields that are not known are ignored, as vLLM does; fields that would change the answer and
    cannot be honoured are refused.

    Raises:
        ApiError: 404 for another model's name; 400 with the field, the value and what is allowed.
    """
    model = body.get("model")
    if model is not None and model != model_name:
        message = f"The model `{model}` does not exist; this replica serves `{model_name}`."
        raise ApiError(message, status=HTTPStatus.NOT_FOUND, kind="NotFoundError", param="model")
    for field, harmless in _UNSUPPORTED.items():
        if body.get(field) not in harmless:
            message = (
                f"{field} is {body[field]!r}; the Transformers engine does not support it: leave "
                "it out, or ask a pool with the engine VLLM"
            )
            raise bad_request(message, field)
    stream = _boolean(body, "stream")
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, Mapping):
        message = f"stream_options is {stream_options!r}; allowed is an object"
        raise bad_request(message, "stream_options")
    if stream_options and not stream:
        message = "stream_options is allowed only with stream true; leave it out"
        raise bad_request(message, "stream_options")
    messages = _messages(body) if endpoint is Endpoint.CHAT else None
    text, token_ids = (None, None) if endpoint is Endpoint.CHAT else _prompt(body)
    return GenerationRequest(
        endpoint=endpoint,
        sampling=_sampling(body),
        max_tokens=_max_tokens(body, endpoint),
        messages=messages,
        template_arguments=_template_arguments(body),
        text=text,
        token_ids=token_ids,
        stop=_stop(body),
        ignore_eos=_boolean(body, "ignore_eos"),
        stream=stream,
        include_usage=_boolean(stream_options, "include_usage"),
        cache_salt=_cache_salt(body),
        return_token_ids=_boolean(body, "return_token_ids"),
        sent=_tokens_sent(body),
    )


def room_for_answer(prompt_tokens: int, max_tokens: int | None, *, max_model_len: int) -> int:
    """How many tokens the answer may have.

    Raises:
        ApiError: 400 where the prompt, or the prompt and ``max_tokens``, exceed the context.
    """
    if prompt_tokens == 0:
        message = "the prompt has no tokens; at least one is needed"
        raise bad_request(message, "prompt")
    room = max_model_len - prompt_tokens
    if room < 1 or (max_tokens is not None and max_tokens > room):
        wanted = "at least 1" if max_tokens is None else str(max_tokens)
        message = (
            f"This model's maximum context length is {max_model_len} tokens. However, you "
            f"requested {wanted} output tokens and your prompt contains {prompt_tokens} input "
            "tokens. Please reduce the length of the input prompt or the number of requested "
            "output tokens."
        )
        raise bad_request(message, "max_tokens" if room >= 1 else "prompt")
    return room if max_tokens is None else max_tokens


def check_tokens_sent(sent: Sequence[int], *, room: int, vocabulary: int) -> None:
    """Whether an answer can have these tokens.

    Raises:
        ApiError: 400 where they are more than the answer may have, or one is no token of the model.
    """
    try:
        checked_tokens(list(sent), vocabulary=vocabulary)
        if len(sent) > room:
            raise ValueError(too_many_tokens(len(sent), room))
    except ValueError as error:
        raise bad_request(str(error), ARGUMENTS_FIELD) from None


def _messages(body: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    messages = body.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        message = f"messages is {messages!r}; allowed is a list with at least one message"
        raise bad_request(message, "messages")
    return tuple(_message(message, index) for index, message in enumerate(messages))


def _message(message: object, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        text = f"{where} is {message!r}; allowed is an object with a role and a content"
        raise bad_request(text, where)
    content = message.get("content")
    if content is None:
        content = ""
    elif isinstance(content, list):
        content = "".join(
            _text_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)
        )
    elif not isinstance(content, str):
        text = f"{where}.content is {content!r}; allowed is a string or a list of text parts"
        raise bad_request(text, f"{where}.content")
    return {**message, "content": content}


def _text_part(part: object, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    message = (
        f"{where} is {part!r}; allowed are parts {{'type': 'text', 'text': …}}: this engine "
        "serves text only"
    )
    raise bad_request(message, where)


def _prompt(body: Mapping[str, Any]) -> tuple[str | None, tuple[int, ...] | None]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt, None
    if isinstance(prompt, list) and all(type(token) is int and token >= 0 for token in prompt):
        return None, tuple(prompt)
    message = (
        f"prompt is {_shortened(prompt)}; allowed is one string or one list of token ids: send "
        "several prompts as several requests"
    )
    raise bad_request(message, "prompt")


def _template_arguments(body: Mapping[str, Any]) -> Mapping[str, object]:
    arguments = body.get("chat_template_kwargs") or {}
    if not isinstance(arguments, Mapping):
        message = f"chat_template_kwargs is {arguments!r}; allowed is an object"
        raise bad_request(message, "chat_template_kwargs")
    return arguments


def _sampling(body: Mapping[str, Any]) -> Sampling:
    top_k = body.get("top_k")
    if top_k is None or top_k == -1:
        top_k = 0
    if type(top_k) is not int or top_k < 0:
        message = f"top_k is {top_k!r}; allowed are -1 or 0 (all) and whole numbers above"
        raise bad_request(message, "top_k")
    return Sampling(
        temperature=_number(body, "temperature", 1.0, least=0.0, most=2.0),
        top_p=_number(body, "top_p", 1.0, least=0.0, most=1.0, above=True),
        top_k=top_k,
    )


def _max_tokens(body: Mapping[str, Any], endpoint: Endpoint) -> int | None:
    field = "max_tokens"
    if endpoint is Endpoint.CHAT and body.get("max_completion_tokens") is not None:
        field = "max_completion_tokens"
    value = body.get(field)
    if value is None:
        return None if endpoint is Endpoint.CHAT else DEFAULT_COMPLETION_TOKENS
    if type(value) is not int or value < 1:
        message = f"{field} is {value!r}; allowed are whole numbers from 1"
        raise bad_request(message, field)
    return value


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    fits = isinstance(stops, list) and len(stops) <= _MAX_STOPS
    if not fits or not all(isinstance(text, str) and text for text in stops):
        message = (
            f"stop is {_shortened(stop)}; allowed is a string or up to {_MAX_STOPS} strings, "
            "none empty"
        )
        raise bad_request(message, "stop")
    return tuple(stops)


def _cache_salt(body: Mapping[str, Any]) -> str:
    salt = body.get("cache_salt")
    if salt is None:
        return ""
    if not isinstance(salt, str) or not salt:
        # vLLM refuses the same: a salt that keeps nothing apart would be a silent leak.
        message = f"cache_salt is {_shortened(salt)}; allowed is a string that is not empty"
        raise bad_request(message, "cache_salt")
    return salt


def _tokens_sent(body: Mapping[str, Any]) -> tuple[int, ...]:
    try:
        sent = tokens_to_continue(body)
    except ValueError as error:
        raise bad_request(str(error), ARGUMENTS_FIELD) from None
    reason = None if sent is None else refusal(body)
    if reason is not None:
        raise bad_request(reason, ARGUMENTS_FIELD)
    return sent or ()


def _boolean(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field)
    if value is None:
        return False
    if not isinstance(value, bool):
        message = f"{field} is {value!r}; allowed are true and false"
        raise bad_request(message, field)
    return value


def _number(
    body: Mapping[str, Any],
    field: str,
    default: float,
    *,
    least: float,
    most: float,
    above: bool = False,
) -> float:
    value = body.get(field)
    if value is None:
        return default
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not fits or (above and value == least):
        start = "above" if above else "from"
        message = f"{field} is {value!r}; allowed are numbers {start} {least:g} to {most:g}"
        raise bad_request(message, field)
    return float(value)


def _shortened(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
