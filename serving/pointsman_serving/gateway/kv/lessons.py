"""What the streams of pools with exact prefix knowledge teach: which tokens their prompts are.

The first event of a stream bears the ids of its prompt's tokens, because the gateway asks for
them to be able to continue it. The answer's ids follow, and the next turn of the conversation
begins with both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from pointsman_serving.gateway.isolation import engine_salt
from pointsman_serving.gateway.said import Said
from pointsman_serving.routing.kv.index import KvIndex
from pointsman_serving.routing.prefix import prompt_of
from pointsman_serving.routing.types import Api, Prompt, RouteRequest

_OTHER_TOKENS = ("truncate_prompt_tokens", "prompt_embeds", "continue_final_message", "echo")
"""Members of a body by which its text is not, or not all, what the engine computes."""


def is_text_alone(fields: Mapping[str, object]) -> bool:
    """Whether the tokens of a request's prompt are all that its cached blocks hang on.

    Args:
        fields: the decoded body.
    """
    if any(fields.get(name) for name in _OTHER_TOKENS):
        return False
    messages = fields.get("messages")
    if not isinstance(messages, list):
        return isinstance(fields.get("prompt"), str)
    return all(isinstance(each, dict) and _is_text(each.get("content")) for each in messages)


def _is_text(content: object) -> bool:
    if content is None or isinstance(content, str):
        return True
    return isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    )


def learn_prompt(index: KvIndex, pool: str, request: RouteRequest, said: Said) -> None:
    """Take a prompt's tokens, once the stream's first event has told them."""
    _learn(index, pool, request, request.prompt, said.prompt_ids)


def learn_answer(index: KvIndex, pool: str, request: RouteRequest, raw: bytes, said: Said) -> None:
    """Take a prompt's tokens and its answer's, once the stream is over.

    Args:
        raw: the request's body.
    """
    prompt = _with_answer(request, raw, said)
    if prompt is not None and said.prompt_ids:
        _learn(index, pool, request, prompt, said.prompt_ids + said.tokens)


def _learn(
    index: KvIndex, pool: str, request: RouteRequest, prompt: Prompt, ids: Sequence[int]
) -> None:
    if ids and prompt.blocks:
        index.learn(pool, prompt, ids, salt=engine_salt(request.tenant))


def _with_answer(request: RouteRequest, raw: bytes, said: Said) -> Prompt | None:
    """The prompt of a next turn as far as it is known; None where that cannot be foreseen.

    An answer with tool calls or reasoning comes back in a form that is the client's choice.
    """
    if not said.finished or said.flaw or not raw:
        return None
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if request.api is Api.CHAT:
        text = said.sole_text("content")
        messages = fields.get("messages")
        if text is None or not isinstance(messages, list):
            return None
        fields["messages"] = [*messages, {"role": "assistant", "content": text}]
    else:
        text = said.sole_text("text")
        prompt = fields.get("prompt")
        if text is None or not isinstance(prompt, str):
            return None
        fields["prompt"] = prompt + text
    return prompt_of(fields, request.api, model=request.model, tenant=request.tenant)
