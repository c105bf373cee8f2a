"""The real vLLM goes on with answers, from the token ids that a client already has."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pointsman_serving.models.cache import model_directory
from pointsman_serving.models.catalog import SMOLLM2
from pointsman_serving.models.gguf import import_packaged_model
from tests.unit.engines.streams import CHAT, COMPLETIONS, continued, read_stream

from .vllm_server import READY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytest.importorskip("vllm")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ARGS = (
    "--dtype=float32",
    "--enforce-eager",
    "--block-size=32",
    "--kv-cache-memory-bytes=134217728",
    "--max-num-batched-tokens=1024",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
)
START_SECONDS = 240.0
END_TOKEN = 2


def chat(text: str, **more: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "temperature": 0, **more}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    folder = model_directory("smollm2")
    import_packaged_model(SMOLLM2, folder)
    command = [sys.executable, "-m", "tests.e2e.vllm_server", str(folder), *ARGS]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    ) as process:
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            yield _listening(process, lines)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            finally:
                # An engine core that is left over would hold the output open.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _read(output: Any, lines: queue.Queue[str]) -> None:
    for line in output:
        lines.put(line)


def _listening(process: subprocess.Popen[str], lines: queue.Queue[str]) -> str:
    end = time.monotonic() + START_SECONDS
    log: list[str] = []
    while time.monotonic() < end and (process.poll() is None or not lines.empty()):
        try:
            log.append(lines.get(timeout=0.5))
        except queue.Empty:
            continue
        if log[-1].startswith(READY):
            return log[-1].removeprefix(READY).strip()
    pytest.fail("vLLM did not start:\n" + "".join(log[-60:]))


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=120)) as session:
        yield session


async def token_ids(http: aiohttp.ClientSession, text: str) -> list[int]:
    body = {"model": "m", "prompt": text, "add_special_tokens": False}
    found = (await (await http.post("/tokenize", json=body)).json())["tokens"]
    assert isinstance(found, list)
    return found


async def metric(http: aiohttp.ClientSession, name: str) -> float:
    text = await (await http.get("/metrics")).text()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )


def cuts(tokens: int) -> list[int]:
    """Some places where a stream of this many tokens can break."""
    return sorted({0, 1, 2, *range(3, tokens, 5), tokens - 1, tokens})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat("What is the capital of France?", max_tokens=24)),
        (CHAT, chat("Repeat exactly: 😀🎉 größe 漢字 €uro", max_tokens=24)),
        (CHAT, chat("Write about the sea.", max_tokens=40, stop=["a place of endless"])),
        (
            CHAT,
            chat(
                "Write about the sun.",
                max_tokens=16,
                stop=["sun is"],
                include_stop_str_in_output=True,
                min_tokens=12,
            ),
        ),
        (
            COMPLETIONS,
            {
                "model": "m",
                "prompt": "Once upon a time",
                "temperature": 0,
                "max_tokens": 20,
                "repetition_penalty": 1.3,
            },
        ),
        (
            COMPLETIONS,
            {"model": "m", "prompt": "1 2 3", "temperature": 0, "max_tokens": 9, "min_tokens": 9},
        ),
    ],
)
async def test_stream_is_the_unbroken_one_when_it_is_continued(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> None:
    whole = await read_stream(http, path, body)
    for cut in cuts(len(whole.token_ids)):
        rest = await read_stream(http, path, continued(body, whole.token_ids[:cut]))
        assert whole.outcome == rest.outcome, cut
        replayed = [
            choice
            for chunk in rest.chunks
            for choice in chunk["choices"]
            if choice.get("token_ids")
        ]
        # The first event with tokens has just those that were sent, and just their text.
        if cut:
            assert whole.token_ids[:cut] == replayed[0]["token_ids"]
            text = replayed[0].get("text") or replayed[0].get("delta", {}).get("content") or ""
            assert whole.text.startswith(text)


async def test_replay_shows_what_was_shown_when_the_stream_broke(
    http: aiohttp.ClientSession,
) -> None:
    body = chat("Repeat exactly: 😀🎉 größe 漢字 €uro", max_tokens=20, stop=["never said"])
    whole = await read_stream(http, CHAT, body)
    shown, count = "", 0
    for chunk in whole.chunks:
        for choice in chunk["choices"]:
            shown += choice["delta"].get("content") or ""
            count += len(choice.get("token_ids") or ())
            if not choice.get("token_ids") or choice["finish_reason"] is not None:
                continue
            rest = await read_stream(http, CHAT, continued(body, whole.token_ids[:count]))
            replayed = rest.chunks[1]["choices"][0]
            text = replayed["delta"].get("content") or ""
            assert (shown, count) == (text, len(replayed["token_ids"]))


async def test_answer_is_the_unbroken_one_when_it_is_whole(http: aiohttp.ClientSession) -> None:
    body = chat("What is the capital of France?", max_tokens=24, return_token_ids=True)
    whole = await (await http.post(CHAT, json=body)).json()
    ids = whole["choices"][0]["token_ids"]
    for cut in (1, 4, len(ids)):
        rest = await (await http.post(CHAT, json=continued(body, ids[:cut]))).json()
        assert whole["choices"] == rest["choices"], cut
        assert whole["usage"]["completion_tokens"] == rest["usage"]["completion_tokens"]


async def test_cached_tokens_are_the_prompts_when_the_answer_was_cached_too(
    http: aiohttp.ClientSession,
) -> None:
    prompt = list(range(100, 150))
    body = {"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 60, "ignore_eos": True}
    whole = await read_stream(http, COMPLETIONS, body)
    for _ in range(2):
        rest = await read_stream(http, COMPLETIONS, continued(body, whole.token_ids[:55]))
        assert whole.token_ids == rest.token_ids
    assert rest.usage is not None
    # 96 of the 105 tokens are in blocks that the engine has; 50 of them are the prompt.
    details = rest.usage["prompt_tokens_details"]
    assert (50, 60, 50) == (
        rest.usage["prompt_tokens"],
        rest.usage["completion_tokens"],
        details["cached_tokens"],
    )


async def test_metrics_count_what_this_engine_made_when_a_stream_is_continued(
    http: aiohttp.ClientSession,
) -> None:
    body = chat("Count to twenty.", max_tokens=20, ignore_eos=True)
    whole = await read_stream(http, CHAT, body)
    before = await metric(http, "vllm:generation_tokens_total")
    await read_stream(http, CHAT, continued(body, whole.token_ids[:15]))
    assert 5 == await metric(http, "vllm:generation_tokens_total") - before
    assert 0 == await metric(http, "vllm:num_requests_running")


async def test_stream_ends_at_once_when_the_context_is_full(http: aiohttp.ClientSession) -> None:
    prompt = [100 + index % 50 for index in range(508)]
    body = {"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 4, "ignore_eos": True}
    whole = await read_stream(http, COMPLETIONS, body)
    rest = await read_stream(http, COMPLETIONS, continued(body, whole.token_ids))
    assert ("length", whole.outcome) == (rest.finish_reason, rest.outcome)


async def test_tool_call_is_parsed_from_its_start_when_the_seam_cuts_it(
    http: aiohttp.ClientSession,
) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    tool = {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    tools = [{"type": "function", "function": tool}]
    body = chat("How is the weather in Paris?", tools=tools, tool_choice="auto", max_tokens=48)
    said = await token_ids(http, call)
    for sent in (said, [*said, END_TOKEN]):
        seen = await read_stream(http, CHAT, continued(body, sent))
        functions = [part["function"] for part in seen.tool_calls]
        assert "weather" == functions[0]["name"]
        arguments = "".join(each.get("arguments") or "" for each in functions)
        assert {"city": "Paris"} == json.loads(arguments)
        assert "" == seen.text
    assert "tool_calls" == seen.finish_reason
    # Half of a call, which the model has to go on with: allowing one token makes it say that.
    half = await token_ids(http, call.partition('is"}')[0])
    forced = {**body, "allowed_token_ids": [said[-6]], "max_tokens": len(half) + 3}
    seen = await read_stream(http, CHAT, continued(forced, half))
    functions = [part["function"] for part in seen.tool_calls]
    assert "weather" == functions[0]["name"]
    arguments = "".join(each.get("arguments") or "" for each in functions)
    assert arguments.startswith('{"city": "Par')
    assert "" == seen.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"presence_penalty": 1}, "presence_penalty=1 cannot be continued"),
        ({"vllm_xargs": {"pointsman_continue": [10**6]}}, "has 1000000: give the ids"),
        ({"vllm_xargs": {"pointsman_continue": [5] * 9}}, "has 9 tokens and the answer may have 8"),
        ({"vllm_xargs": {"pointsman_continue": [True]}}, "has True"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_answer_is_400_when_it_cannot_be_continued(
    http: aiohttp.ClientSession, change: dict[str, object], message: str, stream: bool
) -> None:
    body = {**continued(chat("Hi", max_tokens=8), [5]), "stream": stream, **change}
    reply = await http.post(CHAT, json=body)
    error = (await reply.json())["error"]
    assert (400, "vllm_xargs") == (reply.status, error["param"])
    assert message in error["message"]


async def test_engine_refuses_by_itself_when_the_word_is_spelled_otherwise(
    http: aiohttp.ClientSession,
) -> None:
    body = continued(chat("Hi", max_tokens=8, stream=True, frequency_penalty=1), [5])
    data = json.dumps(body).replace("pointsman_continue", "pointsman\\u005fcontinue")
    reply = await http.post(CHAT, data=data, headers={"content-type": "application/json"})
    assert 400 == reply.status
    assert "presence or frequency penalty" in (await reply.json())["error"]["message"]


async def test_engine_is_idle_again_when_the_client_leaves_a_continued_stream(
    http: aiohttp.ClientSession,
) -> None:
    body = continued(chat("Count to a hundred.", max_tokens=400, ignore_eos=True), [5, 6, 7])
    async with http.post(CHAT, json={**body, "stream": True}) as reply:
        await reply.content.readline()
    async with asyncio.timeout(30):
        while await metric(http, "vllm:num_requests_running"):
            await asyncio.sleep(0.1)


async def test_replies_name_the_replica_when_they_are_vllms(http: aiohttp.ClientSession) -> None:
    reply = await http.get("/v1/models")
    revision = reply.headers["x-pointsman-revision"]
    assert 16 == len(reply.headers["x-pointsman-instance"])
    body = chat("Hi", max_tokens=1)
    wanted = {"x-pointsman-revision": revision}
    assert 200 == (await http.post(CHAT, json=body, headers=wanted)).status
    other = await http.post(CHAT, json=body, headers={"x-pointsman-revision": "0" * 16})
    assert (409, "revision_mismatch") == (other.status, (await other.json())["error"]["code"])
