"""The Simulated engine's API, over real sockets, with the clients that people use."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.unit.engines.conftest import RunningEngine

HELLO = [{"role": "user", "content": "Say something long about the sea, the sun and the ice"}]


@pytest.fixture
async def client(fast: RunningEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{fast.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def http(fast: RunningEngine) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fast.url) as session:
        yield session


async def metrics(http: aiohttp.ClientSession) -> dict[str, float]:
    """Sums of all samples by name."""
    text = await (await http.get("/metrics")).text()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_chat_streams_the_same_text_when_temperature_is_zero(
    client: openai.AsyncOpenAI,
) -> None:
    ask: dict[str, Any] = {"model": "m", "messages": HELLO, "temperature": 0, "max_tokens": 30}
    plain = await client.chat.completions.create(**ask)
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        )
    ]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert plain.choices[0].message.content == text
    assert "assistant" == chunks[0].choices[0].delta.role
    reasons = {chunk.choices[0].finish_reason for chunk in chunks[:-2]}
    assert {None} == reasons
    assert plain.choices[0].finish_reason == chunks[-2].choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert plain.usage is not None
    assert plain.usage.total_tokens == chunks[-1].usage.total_tokens


async def test_chat_texts_differ_when_temperature_is_above_zero(client: openai.AsyncOpenAI) -> None:
    texts = [
        (await client.chat.completions.create(model="m", messages=HELLO, max_tokens=12, **ask))
        .choices[0]
        .message.content
        for ask in ({}, {}, {"seed": 3}, {"seed": 3})
    ]
    assert texts[2] == texts[3]
    assert 3 == len(set(texts))


async def test_chat_finds_its_whole_past_in_the_cache_when_a_turn_is_added(
    client: openai.AsyncOpenAI,
) -> None:
    ask: dict[str, Any] = {"model": "m", "temperature": 0}
    first = await client.chat.completions.create(messages=HELLO, **ask)
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    turns = [*HELLO, answer, {"role": "user", "content": "And?"}]
    second = await client.chat.completions.create(messages=turns, max_tokens=4, **ask)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert "stop" == first.choices[0].finish_reason
    # The last token of the first turn was never an input; blocks are whole.
    attainable = (first.usage.total_tokens - 1) // 4 * 4
    assert attainable == second.usage.prompt_tokens_details.cached_tokens


async def test_chat_shares_nothing_when_cache_salts_differ(client: openai.AsyncOpenAI) -> None:
    cached = []
    for salt in ("a", "b", "b"):
        reply = await client.chat.completions.create(
            model="m", messages=HELLO, max_tokens=1, extra_body={"cache_salt": salt}
        )
        assert reply.usage is not None
        assert reply.usage.prompt_tokens_details is not None
        cached.append(reply.usage.prompt_tokens_details.cached_tokens)
    assert [0, 0] == cached[:2]
    assert cached[2]


async def test_chat_ends_as_it_would_have_when_its_beginning_is_given(
    client: openai.AsyncOpenAI,
) -> None:
    ask: dict[str, Any] = {"model": "m", "temperature": 0}
    whole = await client.chat.completions.create(messages=HELLO, **ask)
    text = whole.choices[0].message.content
    assert text is not None
    beginning = " ".join(text.split(" ")[:7])
    rest = await client.chat.completions.create(
        messages=[*HELLO, {"role": "assistant", "content": beginning}],
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
        **ask,
    )
    assert text == f"{beginning}{rest.choices[0].message.content}"
    assert "stop" == rest.choices[0].finish_reason


async def test_completion_goes_on_as_before_when_token_ids_are_given(
    client: openai.AsyncOpenAI,
) -> None:
    more: dict[str, Any] = {"return_token_ids": True, "ignore_eos": True}
    ask: dict[str, Any] = {"model": "m", "temperature": 0}
    whole = await client.completions.create(
        prompt="Once upon a time", max_tokens=20, extra_body=more, **ask
    )
    choice = whole.choices[0].model_dump()
    head = [*choice["prompt_token_ids"], *choice["token_ids"][:8]]
    rest = await client.completions.create(prompt=head, max_tokens=12, extra_body=more, **ask)
    assert choice["token_ids"][8:] == rest.choices[0].model_dump()["token_ids"]
    assert whole.choices[0].text.endswith(rest.choices[0].text)
    assert "length" == whole.choices[0].finish_reason


async def test_completion_stops_before_the_text_when_stop_is_given(
    client: openai.AsyncOpenAI,
) -> None:
    ask: dict[str, Any] = {"model": "m", "prompt": "Once", "temperature": 0, "max_tokens": 20}
    extra = {"extra_body": {"ignore_eos": True}}
    words = (await client.completions.create(**ask, **extra)).choices[0].text.split()
    stop = f"{words[5][1:]} {words[6]}"  # begins in the middle of a token
    cut = await client.completions.create(**ask, stop=[stop], **extra)
    stream = await client.completions.create(**ask, stop=stop, stream=True, **extra)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert " " + " ".join(words[:5]) + f" {words[5][:1]}" == cut.choices[0].text == text
    assert ("stop", stop) == (
        cut.choices[0].finish_reason,
        cut.choices[0].model_dump()["stop_reason"],
    )


@pytest.mark.parametrize(
    ("body", "status", "kind", "param", "message"),
    [
        ({"model": "x"}, 404, "NotFoundError", "model", "The model `x` does not exist."),
        ({"n": 2}, 400, "BadRequestError", "n", "does not support n=2: give 1 or leave it out"),
        ({"logprobs": True}, 400, "BadRequestError", "logprobs", "give false or leave it out"),
        ({"max_tokens": 0}, 400, "BadRequestError", "max_tokens", "at least 1, got 0"),
        ({"max_tokens": "9"}, 400, "BadRequestError", "max_tokens", 'whole number, got "9"'),
        ({"max_completion_tokens": 2001}, 400, "BadRequestError", "max_completion_tokens", "2000"),
        ({"temperature": -1}, 400, "BadRequestError", "temperature", "non-negative, got -1"),
        ({"messages": []}, 400, "BadRequestError", "messages", "at least one message"),
        ({"messages": ["x"]}, 400, "BadRequestError", "messages", "messages[0] must be an object"),
        ({"stop": ""}, 400, "BadRequestError", "stop", "none empty"),
        ({"cache_salt": ""}, 400, "BadRequestError", "cache_salt", "not empty"),
        ({"stream_options": {}}, 400, "BadRequestError", "stream_options", "when `stream=True`"),
        (
            {"response_format": {"type": "json_object"}},
            400,
            "BadRequestError",
            "response_format",
            "",
        ),
        (
            {"messages": [{"role": "user", "content": "a " * 2001}]},
            400,
            "BadRequestError",
            "input_tokens",
            "maximum context length is 2000 tokens",
        ),
    ],
)
async def test_chat_answers_with_an_error_object_when_the_body_is_wrong(
    http: aiohttp.ClientSession,
    body: dict[str, object],
    status: int,
    kind: str,
    param: str,
    message: str,
) -> None:
    reply = await http.post("/v1/chat/completions", json={"model": "m", "messages": HELLO} | body)
    error = (await reply.json())["error"]
    assert (status, status, kind, param) == (
        reply.status,
        error["code"],
        error["type"],
        error["param"],
    )
    assert message in error["message"]
    assert ["message", "type", "param", "code"] == list(error)


@pytest.mark.parametrize(
    ("data", "content_type", "message"),
    [
        (b"{", "application/json", "The body is no JSON"),
        (b"\xff{}", "application/json", "The body is no JSON"),
        (b"[]", "application/json", "must be a JSON object, not a list"),
        (b"{}", "text/plain", "Only 'application/json' is allowed"),
    ],
)
async def test_chat_answers_400_when_the_body_is_no_json_object(
    http: aiohttp.ClientSession, data: bytes, content_type: str, message: str
) -> None:
    reply = await http.post(
        "/v1/chat/completions", data=data, headers={"content-type": content_type}
    )
    assert 400 == reply.status
    assert message in (await reply.json())["error"]["message"]


async def test_chat_answers_when_texts_hold_half_a_surrogate_pair(
    http: aiohttp.ClientSession,
) -> None:
    half = b'"a \\ud800"'
    statuses = []
    for name in (b"m", b"\\ud800"):
        body = b'{"model": "%s", "max_tokens": 1, "messages": [{"role": "user", "content": %s}]}'
        reply = await http.post(
            "/v1/chat/completions",
            data=body % (name, half),
            headers={"content-type": "application/json"},
        )
        statuses.append(reply.status)
    assert [200, 404] == statuses


@pytest.mark.parametrize(
    "prompt", [None, "", [], [-1], [True], ["a", "b"], [[1], [2]], {"text": "a"}]
)
async def test_completion_answers_400_when_the_prompt_is_not_one_prompt(
    http: aiohttp.ClientSession, prompt: object
) -> None:
    reply = await http.post("/v1/completions", json={"model": "m", "prompt": prompt})
    assert 400 == reply.status
    assert "prompt" == (await reply.json())["error"]["param"]


async def test_every_path_has_an_error_object_when_it_is_unknown(
    http: aiohttp.ClientSession,
) -> None:
    reply = await http.get("/v1/embeddings")
    assert 404 == reply.status
    error = {"message": "Not Found", "type": "Not Found", "param": None, "code": 404}
    assert {"error": error} == await reply.json()
    assert 405 == (await http.get("/v1/completions")).status


async def test_small_endpoints_answer_when_the_engine_is_well(
    http: aiohttp.ClientSession, client: openai.AsyncOpenAI
) -> None:
    assert b"" == await (await http.get("/health")).read()
    assert "success" == await (await http.get("/-/healthz")).text()
    assert (await (await http.get("/version")).json())["version"].startswith("0.32.0")
    models = await client.models.list()
    assert [("m", 2000)] == [(card.id, card.model_dump()["max_model_len"]) for card in models.data]


async def test_detokenize_gives_the_prompt_back_when_it_was_tokenized(
    http: aiohttp.ClientSession,
) -> None:
    body = {"model": "m", "prompt": "größe  ok", "return_token_strs": True}
    tokens = await (await http.post("/tokenize", json=body)).json()
    text = await (
        await http.post("/detokenize", json={"model": "m", "tokens": tokens["tokens"]})
    ).json()
    assert {"prompt": "größe  ok"} == text
    assert (tokens["count"], 2000) == (len(tokens["tokens"]), tokens["max_model_len"])
    chat = await (await http.post("/tokenize", json={"model": "m", "messages": HELLO})).json()
    reply = await http.post(
        "/v1/chat/completions", json={"model": "m", "messages": HELLO, "max_tokens": 1}
    )
    assert chat["count"] == (await reply.json())["usage"]["prompt_tokens"]


async def test_load_header_has_the_asked_form_when_it_is_asked_for(
    http: aiohttp.ClientSession,
) -> None:
    body = {"model": "m", "prompt": "a", "max_tokens": 1}
    headers = {}
    for wanted, stream in (("JSON", False), ("text", True), ("xml", False), ("", True)):
        reply = await http.post(
            "/v1/completions",
            json=body | {"stream": stream},
            headers={"endpoint-load-metrics-format": wanted},
        )
        headers[wanted] = reply.headers.get("endpoint-load-metrics")
    kind, _, report = (headers["JSON"] or "").partition(" ")
    load = {"named_metrics": {"kv_cache_usage_perc": 0.0, "num_requests_waiting": 0.0}}
    assert ("JSON", load) == (kind, json.loads(report))
    assert (
        "TEXT named_metrics.kv_cache_usage_perc=0.0, named_metrics.num_requests_waiting=0.0"
        == headers["text"]
    )
    assert (None, None) == (headers["xml"], headers[""])


@pytest.mark.pain_21
async def test_metrics_have_vllms_names_when_requests_were_served(
    http: aiohttp.ClientSession, client: openai.AsyncOpenAI
) -> None:
    for _ in range(2):
        await client.completions.create(
            model="m", prompt="a b c d e f g h", max_tokens=5, extra_body={"ignore_eos": True}
        )
    found = await metrics(http)
    expected = {
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
        "vllm:prefix_cache_queries_total": 16,
        "vllm:prefix_cache_hits_total": 4,
        "vllm:prompt_tokens_total": 16,
        "vllm:generation_tokens_total": 10,
        "vllm:request_success_total": 2,
        "vllm:time_to_first_token_seconds_count": 2,
        "vllm:inter_token_latency_seconds_count": 8,
        "vllm:request_queue_time_seconds_count": 2,
        "vllm:cache_config_info": 1,
    }
    assert expected == {name: found[name] for name in expected}
    assert "vllm:lora_requests_info" in found


@pytest.mark.parametrize("stream", [True, False])
async def test_work_is_aborted_when_the_client_leaves(
    engine_server: Callable[..., AbstractAsyncContextManager[RunningEngine]],
    *,
    stream: bool,
) -> None:
    body = {"model": "m", "prompt": "a", "max_tokens": 900, "ignore_eos": True, "stream": stream}
    async with (
        engine_server("--iteration-seconds=0.02") as running,
        aiohttp.ClientSession(running.url) as http,
    ):
        asking = asyncio.create_task(http.post("/v1/completions", json=body))
        if stream:
            reply = await asking
            await reply.content.readline()
            reply.close()
        else:
            await until(lambda: running.engine.open_requests == 1)
            asking.cancel()
        await until(lambda: running.engine.open_requests == 0)
        await until(lambda: running.engine.idle)
        assert 1 == (await metrics(http))["vllm:request_success_total"]
        text = await (await http.get("/metrics")).text()
        assert 'finished_reason="abort",model_name="m"} 1.0' in text


async def test_twelve_take_the_time_of_one_when_they_come_together(
    engine_server: Callable[..., AbstractAsyncContextManager[RunningEngine]],
) -> None:
    body = {"model": "m", "prompt": "a b c", "max_tokens": 100, "ignore_eos": True}
    busy = []
    for count in (1, 12):
        async with (
            engine_server("--speed=10") as running,
            aiohttp.ClientSession(running.url) as http,
        ):
            replies = await asyncio.gather(
                *(http.post("/v1/completions", json=body) for _ in range(count))
            )
            assert {200} == {reply.status for reply in replies}
            busy.append(running.engine.busy_seconds)
    assert busy[1] < 1.5 * busy[0]


async def test_stream_has_vllms_fields_in_their_order_when_it_is_a_chat(
    http: aiohttp.ClientSession,
) -> None:
    body = {
        "model": "m",
        "messages": HELLO,
        "max_tokens": 3,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reply = await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "r-1"})
    assert "text/event-stream; charset=utf-8" == reply.headers["content-type"]
    events = (await reply.text()).split("\n\n")
    assert ["data: [DONE]", ""] == events[-2:]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    head = ["id", "object", "created", "model", "choices"]
    assert [*head, "prompt_token_ids", "prompt_text"] == list(chunks[0])
    assert [head, head, head] == [list(chunk) for chunk in chunks[1:4]]
    assert [*head, "usage", "system_fingerprint"] == list(chunks[4])
    choice = ["index", "delta", "logprobs", "finish_reason"]
    assert [
        choice,
        [*choice, "token_ids"],
        [*choice, "token_ids"],
        [*choice, "stop_reason", "token_ids"],
    ] == [list(chunk["choices"][0]) for chunk in chunks[:4]]
    assert {"chatcmpl-r-1"} == {chunk["id"] for chunk in chunks}
    assert {"chat.completion.chunk"} == {chunk["object"] for chunk in chunks}
    assert {
        "prompt_tokens",
        "total_tokens",
        "completion_tokens",
        "prompt_tokens_details",
    } == chunks[4]["usage"].keys()
