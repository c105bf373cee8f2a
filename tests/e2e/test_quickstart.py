"""What the README promises, on the quickstart: real vLLM, real Ray Serve, real sockets."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.e2e.endpoint import Endpoint, Reply, chat, metric, running_up, send, send_all, session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DENSE, MOE, POLICY = "smollm2", "smollm2-moe", "assistant"
WORDS = (
    *("river", "stone", "market", "lantern", "winter", "copper", "garden", "signal", "harbour"),
    *("meadow", "engine", "silver", "bridge", "window", "captain", "forest", "letter", "thunder"),
)


def text(seed: int, words: int) -> str:
    """Words that no other seed begins with."""
    source = random.Random(seed)
    return f"{seed}: " + " ".join(source.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the quickstart that a test may change."""
    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copytree("examples/quickstart", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def endpoint(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    command = [sys.executable, "-m", "pointsman_serving.cli.main", "model"]
    subprocess.run([*command, "import", DENSE], check=True)
    subprocess.run([*command, "upcycle", DENSE, MOE], check=True)
    with running_up(manifests, tmp_path_factory.mktemp("up") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="unused", max_retries=0)


def ask_openai(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=24,
    )
    return answer.choices[0].message.content or ""


class TestOpenAiClient:
    def test_the_dense_pool_names_paris_when_asked(self, client: openai.OpenAI) -> None:
        assert "Paris" in ask_openai(client, DENSE)

    def test_the_stream_says_the_same_when_streamed(self, client: openai.OpenAI) -> None:
        plain = ask_openai(client, DENSE)
        stream = client.chat.completions.create(
            model=DENSE,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            max_tokens=24,
            stream=True,
        )
        chunks = list(stream)
        assert plain == "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert len(chunks) > 3

    def test_experts_are_called_when_the_mixture_is_asked(
        self, client: openai.OpenAI, endpoint: Endpoint
    ) -> None:
        [(address, _)] = endpoint.printed_replicas(MOE).values()
        url, name = f"http://{address}/{MOE}/metrics", "pointsman_moe_expert_calls_total"
        before = metric(url, name)
        assert "Paris" in ask_openai(client, MOE)
        assert metric(url, name) > before

    def test_policy_and_pools_are_listed_when_models_are_asked(self, client: openai.OpenAI) -> None:
        assert {DENSE, MOE, POLICY} == {model.id for model in client.models.list()}

    def test_the_names_that_exist_are_said_when_a_model_is_unknown(
        self, client: openai.OpenAI
    ) -> None:
        with pytest.raises(openai.NotFoundError, match=POLICY):
            ask_openai(client, "gpt-9")

    def test_the_engine_s_own_error_comes_through_when_a_value_is_wrong(
        self, client: openai.OpenAI
    ) -> None:
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(
                model=DENSE, messages=[{"role": "user", "content": "hi"}], temperature=-4
            )

    def test_completions_answer_when_asked_by_prompt(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(
            model=DENSE, prompt="The capital of France is", max_tokens=4, temperature=0
        )
        assert "Paris" in answer.choices[0].text


class TestAffinity:
    async def test_a_group_stays_on_a_replica_when_it_shares_a_long_prefix(
        self, endpoint: Endpoint
    ) -> None:
        prefixes = [text(seed, 500) for seed in range(4)]
        seen: list[Counter[str]] = [Counter() for _ in prefixes]
        async with session(endpoint) as http:
            for turn in range(10):
                for group, prefix in enumerate(prefixes):
                    body = chat(DENSE, f"{prefix} question {turn}", max_tokens=2)
                    reply = await send(http, body)
                    assert reply.status == 200, reply
                    seen[group][reply.replica] += 1
        assert all(max(counts.values()) >= 9 for counts in seen), seen

    async def test_both_replicas_get_their_share_when_requests_are_unrelated(
        self, endpoint: Endpoint
    ) -> None:
        seen: Counter[str] = Counter()
        async with session(endpoint) as http:
            for seed in range(40):
                reply = await send(http, chat(DENSE, text(1000 + seed, 30), max_tokens=2))
                assert reply.status == 200, reply
                seen[reply.replica] += 1
        assert len(seen) == 2
        assert min(seen.values()) >= 12, seen

    async def test_a_group_moves_and_explain_says_why_when_its_replica_is_saturated(
        self, endpoint: Endpoint
    ) -> None:
        prefix = text(2000, 400)
        running: list[asyncio.Task[Reply]] = []
        async with session(endpoint) as http:
            home = (await send(http, chat(DENSE, f"{prefix} first", max_tokens=2))).replica
            for number in range(66):
                body = chat(DENSE, f"{prefix} {number}", max_tokens=300, ignore_eos=True)
                async with http.post("v1/route/explain", json=body) as answer:
                    explanation = await answer.json()
                assert explanation["winner"] is not None, explanation
                running.append(asyncio.create_task(send(http, body | {"stream": True})))
                if explanation["winner"]["replica"] != home:
                    break
                await asyncio.sleep(0.05)
            replies = await asyncio.gather(*running)
        terms = {c["replica"]: c for c in explanation["candidates"]}
        away = explanation["winner"]["replica"]
        assert away != home
        assert terms[home]["predicted_cached_tokens"] > terms[away]["predicted_cached_tokens"]
        assert terms[home]["in_flight"] > terms[away]["in_flight"]
        assert home in explanation["reason"]
        assert all(reply.finished for reply in replies)
        assert away == replies[-1].replica
        assert {home} == {reply.replica for reply in replies[:-1]}

    async def test_twelve_requests_run_together_when_one_replica_gets_them(
        self, endpoint: Endpoint
    ) -> None:
        address, _ = next(iter(endpoint.printed_replicas(DENSE).values()))
        bodies = [
            chat(DENSE, text(3000 + i, 20), max_tokens=60, stream=True, ignore_eos=True)
            for i in range(12)
        ]
        async with session(f"http://{address}/{DENSE}") as http:
            replies = await send_all(http, bodies)
        assert all(reply.finished for reply in replies)
        first_tokens = [reply.first_token_at for reply in replies if reply.first_token_at]
        assert 12 == len(first_tokens)
        assert max(first_tokens) < min(reply.ended_at for reply in replies)

    async def test_chats_find_what_is_cached_when_they_go_on(self, endpoint: Endpoint) -> None:
        async with session(endpoint) as http:
            limit = asyncio.Semaphore(5)
            shares = await asyncio.gather(*(chat_share(http, 8000 + n, limit) for n in range(20)))
        assert [] == [share for share in shares if share < 0.9], shares


async def chat_share(http: aiohttp.ClientSession, seed: int, limit: asyncio.Semaphore) -> float:
    """Cached tokens of a chat of eight turns, as a share of what the turns before left."""
    block_tokens = 32
    said = [text(seed, 60)]
    attainable = cached = known = 0
    async with limit:
        for turn in range(8):
            reply = await send(http, chat(DENSE, *said, max_tokens=12))
            assert reply.status == 200, reply
            usage = reply.document["usage"]
            whole = known // block_tokens * block_tokens
            attainable += whole
            cached += min(whole, usage["prompt_tokens_details"]["cached_tokens"])
            known = usage["prompt_tokens"] + usage["completion_tokens"]
            said += [reply.text, text(seed + 100 * turn, 30)]
    return cached / attainable


class TestFailure:
    """These change the pool, so they come last and in this order."""

    async def test_every_request_finishes_elsewhere_when_its_replica_is_killed(
        self, endpoint: Endpoint
    ) -> None:
        processes = endpoint.printed_replicas(DENSE)
        prefix = text(4000, 300)
        async with session(endpoint) as http:
            victim = (await send(http, chat(DENSE, f"{prefix} who", max_tokens=1))).replica
            begun = [
                asyncio.create_task(
                    send(
                        http,
                        chat(
                            DENSE,
                            f"{prefix} story {i}",
                            max_tokens=400,
                            stream=True,
                            stream_options={"include_usage": True},
                            ignore_eos=True,
                        ),
                    )
                )
                for i in range(4)
            ]
            await asyncio.sleep(2)
            retries = endpoint.metric("pointsman_gateway_retries_total")
            continued = endpoint.metric("pointsman_gateway_continuations_total")
            waiting = [
                asyncio.create_task(
                    send(http, chat(DENSE, text(5000 + i, 120), max_tokens=8, stream=i % 2 == 0))
                )
                for i in range(56)
            ]
            await asyncio.sleep(1)
            os.kill(processes[victim][1], signal.SIGKILL)
            streams = await asyncio.gather(*begun)
            replies = await asyncio.gather(*waiting)
        assert [] == [(r.status, r.error) for r in replies if r.status != 200]
        assert [] == [reply for reply in replies if not reply.finished]
        assert endpoint.metric("pointsman_gateway_retries_total") - retries >= 20
        # Those that had begun at the killed one went on at the other.
        assert [] == [reply for reply in streams if not reply.finished or reply.error is not None]
        assert endpoint.metric("pointsman_gateway_continuations_total") - continued >= 1
        counts = [
            event["usage"]["completion_tokens"]
            for reply in streams
            for event in reply.events
            if event.get("usage")
        ]
        assert [400] * 4 == counts

    async def test_no_request_fails_when_the_pool_is_redeployed_under_load(
        self, endpoint: Endpoint, manifests: Path
    ) -> None:
        await until(lambda: endpoint.replica_counts().get(DENSE) == 2, 300)
        replies: list[Reply] = []
        before: set[str] = set()
        finished = asyncio.Event()

        async def load(worker: int) -> None:
            number = 0
            while not finished.is_set():
                number += 1
                stream = number % 2 == 0
                body = chat(DENSE, text(worker * 1000 + number, 40), max_tokens=16, stream=stream)
                replies.append(await send(http, body))
                # Leave the cores something for the replicas that start.
                await asyncio.sleep(0.2)

        async def long_stream(number: int) -> Reply:
            body = chat(
                DENSE, text(7000 + number, 20), max_tokens=600, stream=True, ignore_eos=True
            )
            return await send(http, body)

        async with session(endpoint) as http:
            for number in range(8):
                body = chat(DENSE, text(6000 + number, 20), max_tokens=1)
                before.add((await send(http, body)).replica)
            workers = [asyncio.create_task(load(9 + i)) for i in range(3)]
            streams = [asyncio.create_task(long_stream(i)) for i in range(4)]
            await asyncio.sleep(1)
            file = manifests / "modelpool-smollm2.yaml"
            old, new = "--max-num-batched-tokens=1024", "--max-num-batched-tokens=768"
            changed = file.read_text().replace(old, new)
            assert new in changed
            file.write_text(changed)
            try:
                await until(
                    lambda: (
                        len({r.replica for r in replies[-30:]} - before) == 2
                        and not {r.replica for r in replies[-30:]} & before
                    ),
                    480,
                )
            finally:
                finished.set()
                await asyncio.gather(*workers)
            long = await asyncio.gather(*streams)
        assert [] == [reply for reply in replies if not reply.finished]
        assert [] == [reply for reply in long if not reply.finished]
        assert len(replies) > 30

    async def test_what_runs_goes_on_when_a_changed_file_is_wrong(
        self, endpoint: Endpoint, manifests: Path
    ) -> None:
        file = manifests / "routepolicy-assistant.yaml"
        file.write_text(file.read_text().replace("attempts: 2", "atempts: 2"))
        await until(lambda: "what was running goes on" in endpoint.log.read_text(), 20)
        assert "attempts" in endpoint.log.read_text()
        async with session(endpoint) as http:
            reply = await send(http, chat(POLICY, "hello", max_tokens=2))
        assert reply.status == 200

    async def test_nothing_is_in_flight_when_all_is_done(self, endpoint: Endpoint) -> None:
        await until(lambda: endpoint.metric("pointsman_gateway_in_flight") == 0, 10)
        assert endpoint.metric("pointsman_gateway_queue_depth") == 0


async def until(condition: object, seconds: float) -> None:
    """Wait for it, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {seconds:.0f} s")
        await asyncio.sleep(0.3)
