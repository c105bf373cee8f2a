"""What a gateway knows of a real vLLM's prefix cache, against what that counts itself."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pointsman_api.compile import compile_route_table
from pointsman_api.modelpool import ModelPool
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.models.cache import model_directory
from pointsman_serving.models.catalog import SMOLLM2
from pointsman_serving.models.gguf import import_packaged_model
from pointsman_serving.routing.prefix import prompt_of
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import Api, ReplicaAddress, ReplicaKey, RouteRequest, Usage
from tests.gateway.harness import FixedSource, until

from .conftest import ray_serve_pool

if TYPE_CHECKING:
    import aiohttp

    from pointsman_api.route_table import RouteTable
    from pointsman_serving.engines.serve_listing import PoolStatus

    from .conftest import Cluster

pytest.importorskip("vllm")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="session"),
]

NAME = "exact"
BLOCK = 32
ARGS = (
    "--dtype=float32",
    "--enforce-eager",
    f"--block-size={BLOCK}",
    # 3,200 tokens: twelve conversations do not fit.
    "--kv-cache-memory-bytes=150994944",
    "--max-num-batched-tokens=1024",
)
CONVERSATIONS = 12
REQUESTS = 36
TEXT = (
    "the quick brown fox jumps over lazy dogs while numbers like 1729 and {json: true} or naïve "
    "façades confuse every tokenizer in Zürich"
)


def pool() -> ModelPool:
    plain = ray_serve_pool(NAME, "VLLM", args=ARGS, sequences=8, replicas=1, contextTokens=2048)
    document = plain.model_dump(mode="json", by_alias=True, exclude_none=True)
    document["spec"]["backend"]["rayServe"]["engine"]["prefixIndex"] = "Events"
    return ModelPool.model_validate(document)


@dataclass
class Estimated:
    """A scheduler that sees the same requests and answers, and no events."""

    table: RouteTable
    address: ReplicaAddress
    scheduler: Scheduler = field(init=False)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.table)
        self.scheduler.set_replicas(NAME, [self.address], now=0.0)

    def run(self, body: dict[str, Any], usage: Usage) -> int:
        """What would have been predicted."""
        prompt = prompt_of(body, Api.CHAT, model=NAME, tenant="")
        request = RouteRequest(request_id="r", model=NAME, api=Api.CHAT, prompt=prompt)
        decision = self.scheduler.decide(request, now=self.now)
        ticket = self.scheduler.dispatch(request, decision, now=self.now)
        self.now += 1.0
        self.scheduler.first_token(ticket, now=self.now)
        self.scheduler.finish(ticket, now=self.now + 1.0, ok=True, usage=usage)
        self.now += 2.0
        assert decision.winner is not None
        return decision.winner.predicted_cached_tokens


def address_of(status: PoolStatus) -> ReplicaAddress:
    replica = next(each for each in status.replicas if each.port is not None)
    assert replica.port is not None
    return ReplicaAddress(
        key=ReplicaKey(NAME, replica.replica),
        host=replica.host,
        port=replica.port,
        base_path=f"{status.base_path}/v1",
        sequence_slots=8,
    )


async def asked(
    http: aiohttp.ClientSession, gateway: Gateway, body: dict[str, Any]
) -> tuple[int, str, Usage]:
    """What the gateway predicts of a request, its answer, and what the engine counted."""
    async with http.post(f"{gateway.url}/v1/route/explain", json=body) as response:
        predicted = (await response.json())["candidates"][0]["predicted_cached_tokens"]
    text = ""
    usage: dict[str, Any] = {}
    async with http.post(f"{gateway.url}/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                text += "".join(each["delta"].get("content") or "" for each in event["choices"])
    counted = Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
    )
    return predicted, text, counted


@pytest.mark.pain_8
@pytest.mark.pain_9
async def test_prediction_is_nearly_exact_when_a_small_cache_evicts(
    cluster: Cluster, http: aiohttp.ClientSession
) -> None:
    folder = model_directory("smollm2")
    import_packaged_model(SMOLLM2, folder)
    table = compile_route_table([pool()], []).table
    chance = random.Random(7)

    def text(fewest: int, most: int) -> str:
        return " ".join(chance.choices(TEXT.split(), k=chance.randint(fewest, most)))

    async with cluster.pool(pool(), model_path=str(folder)) as status:
        address = address_of(status)
        estimated = Estimated(table, address)
        gateway = Gateway(settings=GatewaySettings(port=0), table=table)
        systems = [f"You are helper {number}. {text(60, 60)}" for number in range(2)]
        conversations = [
            [
                {"role": "system", "content": systems[number % 2]},
                {"role": "user", "content": f"Question {number}: {text(20, 160)}"},
            ]
            for number in range(CONVERSATIONS)
        ]
        errors: list[tuple[int, int]] = []
        computed = 0
        async with gateway.running([FixedSource({NAME: [address]})]):
            await until(lambda: bool(gateway.plane.replicas.get(NAME)))
            # The first reply tells where the events are.
            await asked(http, gateway, request_of([{"role": "user", "content": "hello"}]))
            await until(lambda: gateway.plane.kv_feeds.readings()[NAME].states == {"live": 1})
            for _ in range(REQUESTS):
                conversation = chance.choice(conversations)
                body = request_of(conversation)
                predicted, answer, usage = await asked(http, gateway, body)
                cached = usage.cached_tokens or 0
                computed += (usage.prompt_tokens or 0) + (usage.completion_tokens or 0) - cached
                errors.append((abs(predicted - cached), abs(estimated.run(body, usage) - cached)))
                conversation += [
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": text(5, 30)},
                ]
            held = sum(gateway.scheduler.kv.snapshot()[0].held_blocks.values())
    exact = sum(error for error, _ in errors) / len(errors)
    estimate = sum(error for _, error in errors) / len(errors)
    print(
        f"\ncached tokens predicted against counted, mean absolute error of {len(errors)} requests:"
        f" {exact:.1f} exact, {estimate:.1f} estimated; to the token:"
        f" {sum(not error for error, _ in errors)} and {sum(not error for _, error in errors)}"
    )
    assert held * BLOCK < computed, "nothing was evicted"
    assert exact <= BLOCK / 2
    assert exact < estimate / 2


def request_of(messages: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "model": NAME,
        "messages": list(messages),
        "max_tokens": 16,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
