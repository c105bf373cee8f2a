"""The official client against the gateway."""

from __future__ import annotations

import dataclasses

import openai
import pytest

from pointsman_serving.gateway.server import Gateway
from tests.gateway.fake_engine import FakeEngine, answer, status, stream_then_reset
from tests.gateway.harness import FAST, chat, gateway_to, table_of


def client_of(gateway: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0)


MESSAGES = chat()["messages"]


async def test_client_gets_the_answer_when_it_asks(engine: FakeEngine) -> None:
    engine.behaviour = answer("Paris it is")
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        reply = await client.chat.completions.create(model="m", messages=MESSAGES)  # type: ignore[arg-type]
        assert reply.choices[0].message.content == "Paris it is"
        assert reply.usage is not None
        assert reply.usage.prompt_tokens_details is not None
        assert reply.usage.prompt_tokens_details.cached_tokens == 3
        assert [model.id async for model in client.models.list()] == ["m"]


async def test_client_gets_the_words_when_it_streams(engine: FakeEngine) -> None:
    engine.behaviour = answer("Paris it is")
    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)  # type: ignore[call-overload]
        words = [chunk.choices[0].delta.content async for chunk in stream]
    assert words == ["Paris", "it", "is", ""]


async def test_client_raises_what_it_should_when_the_gateway_refuses(engine: FakeEngine) -> None:
    engine.behaviour = status(500)
    table = table_of(resilience=dataclasses.replace(FAST, attempts=1))
    async with gateway_to(engine, table=table) as gateway, client_of(gateway) as client:
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.chat.completions.create(model="nobody", messages=MESSAGES)  # type: ignore[arg-type]
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="m", messages=MESSAGES)  # type: ignore[arg-type]
    assert (caught.value.status_code, caught.value.code) == (503, "upstream_failed")
    assert caught.value.response.headers["retry-after"] == "1"


async def test_client_raises_in_the_middle_when_a_stream_breaks(engine: FakeEngine) -> None:
    engine.behaviour = stream_then_reset(2)
    words: list[str | None] = []

    async def read() -> None:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)  # type: ignore[call-overload]
        async for chunk in stream:
            words.append(chunk.choices[0].delta.content)  # noqa: PERF401 (what came before the error counts)

    async with gateway_to(engine) as gateway, client_of(gateway) as client:
        with pytest.raises(openai.APIError, match="The stream broke before its end"):
            await read()
    assert words == ["w0 ", "w1 "]
