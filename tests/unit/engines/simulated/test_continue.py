"""A Simulated engine goes on with an answer that another one began."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointsman_serving.engines.simulated.text import (
    END_TOKEN,
    continue_tokens,
    seed_of,
    tokenize,
)
from tests.unit.engines.streams import CHAT, COMPLETIONS, continued, read_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.engines.conftest import RunningEngine

HELLO = [{"role": "user", "content": "Say something of the sea, the sun and the ice"}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": "m", "messages": HELLO, "temperature": 0}),
    (CHAT, {"model": "m", "messages": HELLO, "temperature": 0, "max_tokens": 12}),
    (CHAT, {"model": "m", "messages": HELLO, "temperature": 0.7, "seed": 5, "max_tokens": 12}),
    (COMPLETIONS, {"model": "m", "prompt": "Once", "temperature": 0, "max_tokens": 30}),
    (
        COMPLETIONS,
        {"model": "m", "prompt": "Once", "temperature": 0, "max_tokens": 9, "ignore_eos": True},
    ),
]


@pytest.fixture
async def http(fast: RunningEngine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fast.url) as session:
        yield session


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=st.sampled_from(BODIES), share=st.floats(0, 1))
async def test_stream_is_the_unbroken_one_when_it_is_continued_at_any_token(
    http: aiohttp.ClientSession, which: tuple[str, dict[str, Any]], share: float
) -> None:
    path, body = which
    whole = await read_stream(http, path, body)
    cut = round(share * len(whole.token_ids))
    rest = await read_stream(http, path, continued(body, whole.token_ids[:cut]))
    assert whole.outcome == rest.outcome
    assert len(whole.token_ids) - max(cut - 1, 0) == sum(
        bool(choice.get("token_ids")) for chunk in rest.chunks for choice in chunk["choices"]
    )


async def test_every_cut_gives_the_unbroken_stream_when_a_stop_string_crosses_tokens(
    http: aiohttp.ClientSession,
) -> None:
    body = {"model": "m", "prompt": "Once", "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    free = await read_stream(http, COMPLETIONS, body)
    words = free.text.split()
    stop = f"{words[5]} {words[6]} {words[7][:1]}"
    body["stop"] = [stop]
    whole = await read_stream(http, COMPLETIONS, body)
    assert ("stop", stop) == (whole.finish_reason, whole.stop_reason)
    for cut in range(len(whole.token_ids) + 1):
        rest = await read_stream(http, COMPLETIONS, continued(body, whole.token_ids[:cut]))
        assert whole.outcome == rest.outcome, cut


async def test_answer_is_the_unbroken_one_when_it_is_whole(http: aiohttp.ClientSession) -> None:
    body = {**BODIES[0][1], "return_token_ids": True}
    whole = await (await http.post(CHAT, json=body)).json()
    ids = whole["choices"][0]["token_ids"]
    rest = await (await http.post(CHAT, json=continued(body, ids[:7]))).json()
    assert whole["choices"] == rest["choices"]
    assert whole["usage"]["total_tokens"] == rest["usage"]["total_tokens"]


async def test_stream_ends_at_once_when_its_tokens_are_all_it_may_have(
    fast: RunningEngine, http: aiohttp.ClientSession
) -> None:
    body = {**BODIES[0][1], "max_tokens": 5}
    whole = await read_stream(http, CHAT, body)
    worked = fast.engine.busy_seconds
    rest = await read_stream(http, CHAT, continued(body, whole.token_ids))
    assert ("length", whole.outcome) == (rest.finish_reason, rest.outcome)
    assert worked == fast.engine.busy_seconds


async def test_stream_goes_on_when_chance_would_have_ended_it_earlier(
    http: aiohttp.ClientSession,
) -> None:
    tokens = tokenize("a few words that another replica has said before it died")
    body = {"model": "m", "messages": HELLO, "temperature": 1}
    for _ in range(5):
        rest = await read_stream(http, CHAT, continued(body, tokens))
        assert tokens == rest.token_ids[: len(tokens)]
        assert "stop" == rest.finish_reason
        assert END_TOKEN == rest.token_ids[-1]


async def test_replayed_tokens_are_prefilled_when_a_stream_goes_on(
    fast: RunningEngine, http: aiohttp.ClientSession
) -> None:
    body = {**BODIES[0][1], "ignore_eos": True, "max_tokens": 200}
    before = fast.engine.busy_seconds
    whole = await read_stream(http, CHAT, body)
    decoding = fast.engine.busy_seconds - before
    salted = {**body, "cache_salt": "cold"}
    before = fast.engine.busy_seconds
    rest = await read_stream(http, CHAT, continued(salted, whole.token_ids[:190]))
    cold = fast.engine.busy_seconds - before
    assert whole.token_ids == rest.token_ids
    assert cold < decoding / 10
    assert rest.usage is not None
    assert 0 == rest.usage["prompt_tokens_details"]["cached_tokens"]
    # The engine finds prompt and answer in its cache; the client's prompt is all it counts.
    warm = await read_stream(http, CHAT, continued(salted, whole.token_ids[:190]))
    assert warm.usage is not None
    assert warm.usage["prompt_tokens"] == warm.usage["prompt_tokens_details"]["cached_tokens"]


async def test_character_comes_out_whole_when_the_seam_cuts_it(
    http: aiohttp.ClientSession,
) -> None:
    # Four bytes a token: the second token begins with the last byte of the euro sign.
    tokens = tokenize("ab€cdefg")
    body = {"model": "m", "prompt": "Once", "temperature": 0, "max_tokens": 6}
    one = await read_stream(http, COMPLETIONS, continued(body, tokens[:1]))
    two = await read_stream(http, COMPLETIONS, continued(body, tokens[:2]))
    assert one.text.startswith("ab")
    assert two.text.startswith("ab€cde ")


async def test_tokens_follow_from_the_body_when_a_test_computes_them(
    http: aiohttp.ClientSession,
) -> None:
    body = {"model": "m", "prompt": "Once", "temperature": 0, "max_tokens": 8, "ignore_eos": True}
    seen = await read_stream(http, COMPLETIONS, body)
    assert continue_tokens(tokenize("Once"), 8, seed_of(0, "m")) == seen.token_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vllm_xargs": {"pointsman_continue": "12"}}, "give a list of token ids"),
        ({"vllm_xargs": {"pointsman_continue": [1, True]}}, "has True"),
        ({"vllm_xargs": {"pointsman_continue": [-1]}}, "has -1"),
        ({"vllm_xargs": {"pointsman_continue": [2**40]}}, f"has {2**40}"),
        ({"vllm_xargs": {"pointsman_continue": [1, 2, 3]}, "max_tokens": 2}, "has 3 tokens"),
        ({"presence_penalty": 0.5}, "presence_penalty=0.5 cannot be continued"),
    ],
)
async def test_chat_answers_400_when_an_answer_cannot_be_continued(
    http: aiohttp.ClientSession, change: dict[str, object], message: str
) -> None:
    reply = await http.post(CHAT, json=continued(BODIES[0][1], [66]) | change)
    error = (await reply.json())["error"]
    assert (400, "vllm_xargs") == (reply.status, error["param"])
    assert message in error["message"]
