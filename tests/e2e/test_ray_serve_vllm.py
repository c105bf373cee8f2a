"""The real vLLM on real Ray Serve, with a real model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import openai
import pytest
import pytest_asyncio

from pointsman_serving.cluster.guard import descendants
from pointsman_serving.engines.serve_listing import PoolState
from pointsman_serving.models.cache import model_directory
from pointsman_serving.models.catalog import SMOLLM2
from pointsman_serving.models.gguf import import_packaged_model

from .conftest import Targets, ray_serve_pool, steady_load, streamed_tokens, url_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from pointsman_api.modelpool import ModelPool

    from .conftest import Cluster

pytest.importorskip("vllm")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(420),
    pytest.mark.asyncio(loop_scope="session"),
]

NAME = "vllm"
ARGS = (
    "--dtype=float32",
    "--enforce-eager",
    "--block-size=32",
    "--kv-cache-memory-bytes=268435456",
)
PARIS = [{"role": "user", "content": "What is the capital of France?"}]


def pool(*more: str) -> ModelPool:
    return ray_serve_pool(
        NAME, "VLLM", args=(*ARGS, *more), sequences=16, replicas=1, contextTokens=2048
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def model_path() -> str:
    folder = model_directory("smollm2")
    await asyncio.to_thread(import_packaged_model, SMOLLM2, folder)
    return str(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(cluster: Cluster, model_path: str) -> AsyncIterator[str]:
    async with cluster.pool(pool("--max-num-batched-tokens=1024"), model_path=model_path) as status:
        yield url_of(status)


async def test_stream_says_what_the_plain_answer_says_when_temperature_is_zero(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        plain = await client.chat.completions.create(
            model=NAME, messages=PARIS, max_tokens=20, temperature=0
        )
        text = ""
        stream = await client.chat.completions.create(
            model=NAME, messages=PARIS, max_tokens=20, temperature=0, stream=True
        )
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert "Paris" in text
    assert plain.choices[0].message.content == text


@pytest.mark.pain_8
async def test_cached_tokens_are_told_when_a_prompt_comes_again(url: str) -> None:
    story = " ".join(f"Fox number {number} jumps." for number in range(60))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        cached = []
        for _ in range(2):
            answer = await client.chat.completions.create(
                model=NAME,
                messages=[{"role": "user", "content": story}],
                max_tokens=1,
                temperature=0,
            )
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert 0 == cached[0]
    assert cached[1] is not None
    assert 300 < cached[1] < answer.usage.prompt_tokens


async def test_error_is_openais_when_the_model_is_unknown(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        with pytest.raises(openai.NotFoundError, match="nothing"):
            await client.chat.completions.create(model="nothing", messages=PARIS)


@pytest.mark.parametrize("stream", [False, True])
async def test_load_is_in_vllms_header_when_asked_for(
    url: str, http: aiohttp.ClientSession, stream: bool
) -> None:
    async with http.post(
        f"{url}/v1/chat/completions",
        json={"model": NAME, "messages": PARIS, "max_tokens": 2, "stream": stream},
        headers={"endpoint-load-metrics-format": "JSON"},
    ) as answer:
        form, _, report = answer.headers["endpoint-load-metrics"].partition(" ")
    assert "JSON" == form
    assert {"num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"} == json.loads(
        report
    )["named_metrics"].keys()


@pytest.mark.pain_12
async def test_nothing_fails_and_no_stream_ends_when_an_argument_changes(
    cluster: Cluster, http: aiohttp.ClientSession, url: str, model_path: str
) -> None:
    body = {"model": NAME, "messages": PARIS, "temperature": 0, "ignore_eos": True}
    async with Targets(cluster, NAME).watched() as targets:
        before = set(targets.ids)
        stop = asyncio.Event()

        async def streams() -> Counter[int | None]:
            """One stream after another, so that one is under way whenever a replica goes."""
            tokens: Counter[int | None] = Counter()
            while not stop.is_set():
                long = body | {"max_tokens": 100}
                tokens[await streamed_tokens(http, targets.urls[0], long)] += 1
            return tokens

        load = asyncio.create_task(steady_load(http, targets, body | {"max_tokens": 4}, stop))
        streaming = asyncio.create_task(streams())
        await cluster.put(pool("--max-num-batched-tokens=768"), model_path=model_path)
        await cluster.until(NAME, PoolState.READY)
        await asyncio.sleep(1)
        stop.set()
        outcomes, streamed = await asyncio.gather(load, streaming)
        assert before.isdisjoint(targets.ids)
    assert {"200"} == set(outcomes)
    assert {100} == set(streamed)


async def test_replica_is_replaced_when_its_engine_core_is_killed(
    cluster: Cluster, url: str
) -> None:
    (replica,) = (await cluster.ray.status())[NAME].replicas
    assert replica.pid is not None
    for process in descendants(replica.pid):
        os.kill(process, signal.SIGKILL)
    await cluster.until(NAME, PoolState.UNHEALTHY, 30)
    status = await cluster.until(NAME, PoolState.READY)
    assert replica.replica not in {each.replica for each in status.replicas if each.port}
