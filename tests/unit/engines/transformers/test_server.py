"""The Transformers engine with a tiny mixture of experts, over real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from pointsman_api.modelpool import EngineType, ExpertsImplementation
from pointsman_serving.engines.engine import EngineFailedError
from pointsman_serving.engines.options import ReplicaOptions
from pointsman_serving.engines.transformers.replica import start_transformers
from tests.unit.engines.transformers.running import ARGS, serving
from tests.unit.models import tiny

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

USER = [{"role": "user", "content": "hello hello hello"}]

# Importing transformers alone takes a minute where other work fills the cores.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncIterator[tuple[str, Any]]:
    async with serving(folder) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(running: tuple[str, Any]) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{running[0]}/v1", api_key="none", max_retries=0, timeout=60
    ) as found:
        yield found


async def ask(client: openai.AsyncOpenAI, **changed: Any) -> Any:
    asked = {"model": "moe", "messages": USER, "temperature": 0, "max_tokens": 12, **changed}
    return await client.chat.completions.create(**asked)


async def metrics(url: str) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


async def until_idle(engine: Any) -> None:
    async with asyncio.timeout(30):
        while engine.running or engine.waiting:
            await asyncio.sleep(0.02)


async def test_answer_is_the_same_when_asked_again_and_when_streamed(
    client: openai.AsyncOpenAI,
) -> None:
    first, second = await ask(client), await ask(client)
    text = ""
    usage = None
    async for chunk in await ask(client, stream=True, stream_options={"include_usage": True}):
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        usage = chunk.usage or usage

    assert first.choices[0].message.content == second.choices[0].message.content == text
    assert usage is not None
    assert usage.completion_tokens == first.usage.completion_tokens


async def test_answer_equals_generate_when_the_temperature_is_zero(
    client: openai.AsyncOpenAI, folder: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        USER, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    prompt = inputs["input_ids"].shape[1]
    expected = tokenizer.decode(output[0, prompt:], skip_special_tokens=True)

    found = await ask(client)

    # A character whose last byte is still to come is not shown.
    assert expected.rstrip("\ufffd") == found.choices[0].message.content
    assert prompt == found.usage.prompt_tokens


async def test_usage_tells_what_the_prefix_cache_saved(client: openai.AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "a prefix that nobody else asks for: 8 tokens a page"}]
    first = await ask(client, messages=messages, max_tokens=2)

    second = await ask(client, messages=messages, max_tokens=2)

    assert first.usage.prompt_tokens_details.cached_tokens == 0
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert second.usage.prompt_tokens - 8 <= cached < second.usage.prompt_tokens
    assert first.choices[0].message.content == second.choices[0].message.content


async def cached(url: str, prompt: list[int], salt: str | None) -> int:
    body = {"model": "moe", "prompt": prompt, "max_tokens": 2, "cache_salt": salt}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/completions", json=body) as reply,
    ):
        return int((await reply.json())["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_prefix_is_shared_only_with_the_same_salt(folder: Path) -> None:
    prompt = list(range(3, 53))
    # Room for all, so that nothing is missed because it was evicted.
    async with serving(folder, "--num-blocks=64") as (url, _):
        firsts = [await cached(url, prompt, salt) for salt in ("a", "b", None)]
        seconds = [await cached(url, prompt, salt) for salt in ("a", "b", None)]
        branched = await cached(url, [*prompt[:24], 99, *prompt[25:]], "b")
        shifted = await cached(url, prompt[8:], None)

    # Six full pages of 8 tokens.
    assert ([0, 0, 0], [48, 48, 48]) == (firsts, seconds)
    assert (24, 0) == (branched, shifted)


async def test_prefix_keeps_its_salt_when_requests_are_put_back_or_given_up(folder: Path) -> None:
    from transformers.generation.continuous_batching.cache_allocators.cache_allocator import (
        compute_block_hash,
    )

    prompts = [[60 + n] * 24 for n in range(8)]
    async with serving(folder) as (url, engine), aiohttp.ClientSession() as session:
        asked = [
            asyncio.create_task(
                session.post(
                    f"{url}/v1/completions",
                    json={
                        "model": "moe",
                        "prompt": prompt,
                        "max_tokens": 60,
                        "ignore_eos": True,
                        "cache_salt": "kept",
                    },
                )
            )
            for prompt in prompts
        ]
        async with asyncio.timeout(30):
            while engine.running == 0:
                await asyncio.sleep(0.001)
        for task in asked[:2]:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await until_idle(engine)

        ledger = engine.manager.batch_processor.cache.cache_allocators["full_attention"].ledger
        kept = set(ledger.hash_to_block)
        unsalted = [await cached(url, prompt, None) for prompt in prompts]

    plain = {compute_block_hash(None, prompt[:8]) for prompt in prompts}
    assert kept
    assert plain.isdisjoint(kept)
    assert [0] * len(prompts) == unsalted


async def test_salt_that_is_half_of_a_surrogate_pair_is_served(running: tuple[str, Any]) -> None:
    body = rb'{"model": "moe", "prompt": [5, 6], "max_tokens": 1, "cache_salt": "\ud800"}'
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{running[0]}/v1/completions", data=body) as reply,
    ):
        assert reply.status == 200


async def test_requests_run_together_and_do_not_change_each_other(
    client: openai.AsyncOpenAI, running: tuple[str, Any]
) -> None:
    asked = [[{"role": "user", "content": text}] for text in "abcdef"]
    alone = [await ask(client, messages=messages) for messages in asked]

    # Others at another temperature share the batch.
    together, _ = await asyncio.gather(
        asyncio.gather(*(ask(client, messages=messages) for messages in asked)),
        asyncio.gather(*(ask(client, messages=messages, temperature=2) for messages in asked)),
    )

    def texts(replies: Any) -> list[str]:
        return [reply.choices[0].message.content for reply in replies]

    assert texts(alone) == texts(together)
    assert (0, 0) == (running[1].running, running[1].waiting)


async def test_sampling_is_each_requests_own(client: openai.AsyncOpenAI) -> None:
    greedy = await ask(client)
    hot = [await ask(client, temperature=2) for _ in range(4)]
    narrow = await ask(client, temperature=2, extra_body={"top_k": 1})
    tight = await ask(client, temperature=2, top_p=1e-6)

    def text(reply: Any) -> str:
        return str(reply.choices[0].message.content)

    assert {text(greedy)} != {text(reply) for reply in hot}
    assert text(greedy) == text(narrow) == text(tight)


async def test_more_requests_than_the_cache_holds_are_all_served(
    client: openai.AsyncOpenAI,
) -> None:
    asked = [
        {"messages": [{"role": "user", "content": f"{n} {'abc ' * 8}"}], "max_tokens": 40}
        for n in range(8)
    ]

    replies = await asyncio.gather(
        *(ask(client, **body, extra_body={"ignore_eos": True}) for body in asked)
    )

    assert [40] * 8 == [reply.usage.completion_tokens for reply in replies]


async def test_one_request_may_use_the_whole_context(client: openai.AsyncOpenAI) -> None:
    reply = await client.completions.create(
        model="moe",
        prompt=[5] * 100,
        max_tokens=tiny.CONTEXT - 100,
        temperature=0,
        extra_body={"ignore_eos": True},
    )

    assert tiny.CONTEXT == reply.usage.total_tokens
    assert reply.choices[0].finish_reason == "length"


async def test_completion_of_text_and_of_its_tokens_are_equal(
    client: openai.AsyncOpenAI, folder: Path
) -> None:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)("hello 12")["input_ids"]
    asked = {"model": "moe", "max_tokens": 6, "temperature": 0}

    by_text = await client.completions.create(prompt="hello 12", **asked)
    by_ids = await client.completions.create(prompt=ids, **asked)
    streamed = [
        chunk.choices[0].text
        async for chunk in await client.completions.create(prompt=ids, stream=True, **asked)
    ]

    assert by_text.choices[0].text == by_ids.choices[0].text == "".join(streamed)


async def test_answer_ends_before_a_stop_string(
    client: openai.AsyncOpenAI, running: tuple[str, Any]
) -> None:
    whole = (await ask(client)).choices[0].message.content
    stop = whole[3:5]

    reply = await ask(client, stop=[stop])

    assert whole[: whole.index(stop)] == reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    await until_idle(running[1])


async def test_stream_has_the_events_that_clients_expect(running: tuple[str, Any]) -> None:
    body = {"model": "moe", "messages": USER, "max_tokens": 3, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    headers = {"x-request-id": "mine", "endpoint-load-metrics-format": "JSON"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{running[0]}/v1/chat/completions", json=body, headers=headers) as reply,
    ):
        raw = (await reply.text()).split("\n\n")
        load = reply.headers["endpoint-load-metrics"]

    assert (200, "mine") == (reply.status, reply.headers["x-request-id"])
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert {"kv_cache_usage_perc", "num_requests_running", "num_requests_waiting"} == set(
        json.loads(load.removeprefix("JSON "))["named_metrics"]
    )
    assert ["data: [DONE]", ""] == raw[-2:]
    events = [json.loads(event.removeprefix("data: ")) for event in raw[:-2]]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-2]["choices"][0]["finish_reason"] in ("length", "stop")
    assert [] == events[-1]["choices"]
    assert events[-1]["usage"]["completion_tokens"] <= 3
    assert len({event["id"] for event in events}) == 1
    assert all("usage" not in event for event in events[:-1])


@pytest.mark.parametrize("stream", [True, False])
async def test_request_is_cancelled_when_the_client_leaves(
    running: tuple[str, Any], stream: bool
) -> None:
    url, engine = running
    before = (await metrics(url))[
        'vllm:request_success_total{engine="0",finished_reason="abort",model_name="moe"}'
    ]
    # At a pace that leaves time to leave: many requests of full length.
    body = {
        "model": "moe",
        "prompt": [7] * 8,
        "max_tokens": 100,
        "ignore_eos": True,
        "stream": stream,
    }
    async with aiohttp.ClientSession() as session:
        tasks = [
            asyncio.create_task(session.post(f"{url}/v1/completions", json=body)) for _ in range(6)
        ]
        async with asyncio.timeout(30):
            while engine.running == 0:
                await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
    await until_idle(engine)

    after = (await metrics(url))[
        'vllm:request_success_total{engine="0",finished_reason="abort",model_name="moe"}'
    ]
    assert after > before
    assert engine.kv_usage == 0


async def test_metrics_have_vllms_names_and_count_experts(
    client: openai.AsyncOpenAI, running: tuple[str, Any]
) -> None:
    def experts(found: dict[str, float]) -> float:
        return sum(v for n, v in found.items() if n.startswith("pointsman_moe_expert_calls_total{"))

    before = await metrics(running[0])
    reply = await ask(client, max_tokens=4, extra_body={"ignore_eos": True})
    after = await metrics(running[0])

    labels = '{engine="0",model_name="moe"}'
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert after[f"vllm:{name}{labels}"] == 0
    for name, count in (
        ("prompt_tokens_total", reply.usage.prompt_tokens),
        ("generation_tokens_total", 4),
        ("time_to_first_token_seconds_count", 1),
        ("inter_token_latency_seconds_count", 3),
        ("prefix_cache_hits_total", reply.usage.prompt_tokens_details.cached_tokens),
    ):
        assert count == after[f"vllm:{name}{labels}"] - before[f"vllm:{name}{labels}"]
    # Top-2 in each layer for every token that is computed; the last one is not fed back.
    computed = reply.usage.prompt_tokens - reply.usage.prompt_tokens_details.cached_tokens + 3
    assert 2 * tiny.LAYERS * computed == experts(after) - experts(before)


async def test_models_and_health_say_what_is_served(
    client: openai.AsyncOpenAI, running: tuple[str, Any]
) -> None:
    models = [model async for model in client.models.list()]
    assert [("moe", tiny.CONTEXT)] == [(m.id, m.model_dump()["max_model_len"]) for m in models]
    async with aiohttp.ClientSession() as session:
        for path in ("/health", "/-/healthz"):
            async with session.get(f"{running[0]}{path}") as reply:
                assert reply.status == 200


@pytest.mark.parametrize(
    ("path", "data", "status", "says"),
    [
        ("/v1/chat/completions", b"{", 400, "the body is not JSON"),
        ("/v1/chat/completions", b"[]", 400, "allowed is an object"),
        ("/v1/chat/completions", b'{"model": "x", "messages": [{}]}', 404, "does not exist"),
        ("/v1/chat/completions", b'{"messages": []}', 400, "at least one message"),
        ("/v1/completions", b'{"prompt": ""}', 400, "at least one is needed"),
        ("/v1/completions", b'{"prompt": [99999]}', 400, "token id 99999"),
        ("/v1/completions", b'{"prompt": "a", "max_tokens": 999}', 400, "maximum context"),
        ("/v1/embeddings", b"{}", 404, "Not Found"),
        ("/reset", b"{}", 404, "Not Found"),
    ],
)
async def test_errors_are_openais_objects(
    running: tuple[str, Any], path: str, data: bytes, status: int, says: str
) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{running[0]}{path}", data=data) as reply,
    ):
        error = (await reply.json())["error"]

    assert (status, status) == (reply.status, error["code"])
    assert says in error["message"]
    assert {"message", "type", "param", "code"} == set(error)


async def test_health_fails_and_requests_get_503_when_the_engine_has_died(folder: Path) -> None:
    async with serving(folder) as (url, engine), aiohttp.ClientSession() as session:
        body = {"model": "moe", "prompt": [7] * 8, "max_tokens": 110, "ignore_eos": True}
        streaming = asyncio.create_task(
            session.post(f"{url}/v1/completions", json={**body, "stream": True})
        )
        reply = await streaming
        await asyncio.to_thread(engine.stop)
        text = await reply.text()
        async with session.post(f"{url}/v1/completions", json=body) as late:
            error = (await late.json())["error"]
        async with session.get(f"{url}/health") as health:
            pass

    assert (503, 503) == (late.status, health.status)
    assert "generation thread has ended" in error["message"]
    events = [event for event in text.split("\n\n") if event]
    assert events[-1] == "data: [DONE]"
    finished = '"finish_reason":"length"' in events[-2]
    assert finished or "error" in json.loads(events[-2].removeprefix("data: "))


async def test_replica_is_healthy_until_it_is_closed(folder: Path) -> None:
    replica = await start_transformers(
        ReplicaOptions(
            pool="moe",
            engine=EngineType.TRANSFORMERS,
            served_model_name="moe",
            model_path=str(folder),
            max_sequences=4,
            context_tokens=64,
            experts=ExpertsImplementation.POINTSMAN,
            arguments=ARGS,
        )
    )
    await replica.check_health()

    await replica.close()

    with pytest.raises(EngineFailedError, match="generation thread has ended"):
        await replica.check_health()


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {"max_model_len": 4096}, "max_model_len is 4096; allowed are 2 to 128"),
        (("--num-blocks=4",), {}, "the KV cache holds 32 tokens; raise --num-blocks"),
        ((), {"experts": "Magic"}, "experts implementation is 'Magic'; allowed are Pointsman"),
    ],
)
async def test_loading_says_what_is_allowed_when_an_argument_is_wrong(
    folder: Path, args: tuple[str, ...], kwargs: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        async with serving(folder, *args, **kwargs):
            pass


async def test_loading_names_the_path_when_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json there"):
        async with serving(tmp_path):
            pass
