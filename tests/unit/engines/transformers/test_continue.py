"""A Transformers engine goes on with an answer that another one began."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from tests.unit.engines.streams import CHAT, COMPLETIONS, continued, read_stream
from tests.unit.engines.transformers.running import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

TALK: dict[str, Any] = {
    "model": "moe",
    "messages": [{"role": "user", "content": "hello hello hello"}],
    "temperature": 0,
    "max_tokens": 16,
}
TEXT: dict[str, Any] = {
    "model": "moe",
    "prompt": "hello 12",
    "temperature": 0,
    "max_tokens": 14,
    "ignore_eos": True,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncIterator[tuple[str, Any]]:
    async with serving(folder) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def http(running: tuple[str, Any]) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(running[0]) as session:
        yield session


@pytest.mark.parametrize(("path", "body"), [(CHAT, TALK), (COMPLETIONS, TEXT)])
async def test_stream_is_the_unbroken_one_when_it_is_continued_at_any_token(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> None:
    whole = await read_stream(http, path, body)
    assert whole.usage is not None
    assert whole.usage["completion_tokens"] == len(whole.token_ids)
    for cut in range(len(whole.token_ids) + 1):
        rest = await read_stream(http, path, continued(body, whole.token_ids[:cut]))
        assert whole.outcome == rest.outcome, cut
        told = [
            choice["token_ids"]
            for chunk in rest.chunks
            for choice in chunk["choices"]
            if choice.get("token_ids")
        ]
        assert not cut or whole.token_ids[:cut] == told[0]


async def test_stop_string_is_found_when_the_seam_cuts_it(http: aiohttp.ClientSession) -> None:
    free = await read_stream(http, COMPLETIONS, TEXT)
    middle = len(free.text) // 2
    body = {**TEXT, "stop": [free.text[middle - 1 : middle + 3]]}
    whole = await read_stream(http, COMPLETIONS, body)
    assert "stop" == whole.finish_reason
    assert free.text[: free.text.index(body["stop"][0])] == whole.text
    for cut in range(len(whole.token_ids) + 1):
        rest = await read_stream(http, COMPLETIONS, continued(body, whole.token_ids[:cut]))
        assert whole.outcome == rest.outcome, cut


async def test_stream_ends_at_once_when_its_last_token_was_an_end_token(
    http: aiohttp.ClientSession, running: tuple[str, Any]
) -> None:
    end = running[1].manager.generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    seen = await read_stream(http, CHAT, continued(TALK, [5, 6, end]))
    assert ("stop", [5, 6, end]) == (seen.finish_reason, seen.token_ids)


@pytest.mark.parametrize(("path", "body"), [(CHAT, TALK), (COMPLETIONS, TEXT)])
async def test_answer_is_the_unbroken_one_when_it_is_whole(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> None:
    asked = {**body, "return_token_ids": True}
    whole = await (await http.post(path, json=asked)).json()
    ids = whole["choices"][0]["token_ids"]
    rest = await (await http.post(path, json=continued(asked, ids[:6]))).json()
    assert whole["choices"] == rest["choices"]
    assert whole.get("prompt_token_ids") == rest.get("prompt_token_ids")
    assert whole["usage"]["total_tokens"] == rest["usage"]["total_tokens"]
    plain = await (await http.post(path, json=body)).json()
    assert "token_ids" not in plain["choices"][0]


async def test_cached_tokens_are_the_prompts_when_the_answer_was_cached_too(
    http: aiohttp.ClientSession,
) -> None:
    body = {**TEXT, "prompt": list(range(70, 80)), "max_tokens": 30}
    whole = await read_stream(http, COMPLETIONS, body)
    rest = await read_stream(http, COMPLETIONS, continued(body, whole.token_ids[:25]))
    assert rest.usage is not None
    # Pages of 8: four of them hold prompt and answer, the client's prompt is 10 tokens.
    assert (10, 30, 10) == (
        rest.usage["prompt_tokens"],
        rest.usage["completion_tokens"],
        rest.usage["prompt_tokens_details"]["cached_tokens"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vllm_xargs": {"pointsman_continue": [5] * 17}}, "has 17 tokens and the answer may have"),
        ({"vllm_xargs": {"pointsman_continue": [99999]}}, "has 99999: give the ids"),
        ({"vllm_xargs": {"pointsman_continue": [5], "other": 1}}, "vllm_xargs.other"),
        ({"vllm_xargs": {"pointsman_continue": ["5"]}}, "has '5'"),
    ],
)
async def test_answer_is_400_when_it_cannot_be_continued(
    http: aiohttp.ClientSession, change: dict[str, object], message: str
) -> None:
    reply = await http.post(CHAT, json={**TALK, **change})
    error = (await reply.json())["error"]
    assert (400, "vllm_xargs") == (reply.status, error["param"])
    assert message in error["message"]
