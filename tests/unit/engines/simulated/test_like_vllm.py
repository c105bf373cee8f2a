"""The Simulated engine's bodies against vLLM's own classes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

if TYPE_CHECKING:
    from tests.unit.engines.conftest import RunningEngine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
COMPLETION = {"model": "m", "prompt": "Hi", "max_tokens": 3}


@pytest.fixture(scope="module")
def shapes() -> dict[str, Any]:
    """vLLM's classes by the name of what they describe."""
    chat = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    completion = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
    common = pytest.importorskip("vllm.entrypoints.serve.engine.protocol")
    return {
        "chat": chat.ChatCompletionResponse,
        "chat chunk": chat.ChatCompletionStreamResponse,
        "completion": completion.CompletionResponse,
        "completion chunk": completion.CompletionStreamResponse,
        "models": common.ModelList,
        "error": common.ErrorResponse,
    }


def same_shape(body: dict[str, Any], shape: Any) -> None:
    """vLLM would have written this very object: same fields, same order, nothing besides."""
    parsed = shape.model_validate(body)
    assert json.dumps(parsed.model_dump()) == json.dumps(body)


def same_chunk(body: dict[str, Any], shape: Any) -> None:
    """vLLM's class knows every field of this chunk, and writes them in this order."""
    parsed = shape.model_validate(body)
    assert json.dumps(parsed.model_dump(exclude_unset=True)) == json.dumps(body)
    assert not parsed.model_extra
    assert not any(choice.model_extra for choice in parsed.choices)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", CHAT, "chat"),
        ("/v1/chat/completions", CHAT | {"return_token_ids": True}, "chat"),
        ("/v1/completions", COMPLETION, "completion"),
        ("/v1/completions", COMPLETION | {"return_token_ids": True}, "completion"),
        ("/v1/chat/completions", CHAT | {"model": "x"}, "error"),
    ],
)
async def test_answer_is_vllms_when_it_is_whole(
    fast: RunningEngine, shapes: dict[str, Any], path: str, body: dict[str, object], name: str
) -> None:
    async with aiohttp.ClientSession(fast.url) as http:
        reply = await http.post(path, json=body)
        same_shape(await reply.json(), shapes[name])


async def test_models_are_vllms(fast: RunningEngine, shapes: dict[str, Any]) -> None:
    async with aiohttp.ClientSession(fast.url) as http:
        same_shape(await (await http.get("/v1/models")).json(), shapes["models"])


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", CHAT, "chat chunk"),
        ("/v1/completions", COMPLETION, "completion chunk"),
    ],
)
@pytest.mark.parametrize("usage", [None, {"include_usage": True, "continuous_usage_stats": True}])
async def test_stream_is_vllms(
    fast: RunningEngine,
    shapes: dict[str, Any],
    path: str,
    body: dict[str, object],
    name: str,
    usage: dict[str, bool] | None,
) -> None:
    ask = body | {"stream": True, "stream_options": usage, "return_token_ids": True}
    async with aiohttp.ClientSession(fast.url) as http:
        text = await (await http.post(path, json=ask)).text()
    events = text.strip().split("\n\n")
    assert "data: [DONE]" == events.pop()
    for event in events:
        same_chunk(json.loads(event.removeprefix("data: ")), shapes[name])
