"""The demo: the quickstart's pools and gateway, three requests, and whether all of it is right."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console
from rich.markup import escape

from pointsman_api.manifests import ManifestErrors
from pointsman_serving.cli.errors import RunError, UsageError, shown_errors
from pointsman_serving.cli.explain import explanation_table
from pointsman_serving.cli.interrupt import Interrupt, run_interruptible
from pointsman_serving.cli.phases import Phases
from pointsman_serving.cli.plan import Machine, read_plan
from pointsman_serving.cli.stack import Stack, ensure_port_free, running_stack
from pointsman_serving.cli.up import (
    STOPPING,
    endpoint_text,
    quiet_logs,
    replica_table,
)
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.models.cache import models_directory
from pointsman_serving.models.catalog import SMOLLM2, ModelSourceError
from pointsman_serving.models.folder import ModelFolderError
from pointsman_serving.models.gguf import import_packaged_model
from pointsman_serving.models.upcycle import UpcycleOptions, upcycle_model

DENSE, MOE, POLICY = "smollm2", "smollm2-moe", "assistant"
QUESTION = "What is the capital of France?"
_STARTED_VARIABLE = "POINTSMAN_DEMO_STARTED"
_REQUEST_SECONDS = 120.0
_EXPERT_CALLS = re.compile(r"^pointsman_moe_expert_calls_total\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply as the demo shows it."""

    text: str
    pool: str
    replica: str
    seconds: float
    events: int = 0
    """Server-sent events with text, of a streamed reply."""


def demo(
    manifests: Annotated[Path, typer.Argument(help="The quickstart's folder.")],
    once: Annotated[bool, typer.Option(help="Check everything, stop, and say so by exit code.")],
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
) -> None:
    """Prepare the models, run the quickstart and ask it three things."""
    console = Console()
    quiet_logs()
    phases = Phases(console)
    if started := os.environ.get(_STARTED_VARIABLE):
        phases.record("install", max(0.0, time.time() - float(started)))
    ensure_port_free("127.0.0.1", port)

    async def work(interrupt: Interrupt) -> None:
        await _demonstrate(manifests, phases, console, interrupt, port=port, once=once)

    if not run_interruptible(work):
        if once:
            raise RunError("the demo was stopped before it was done")
        console.print("Stopped.")


async def _demonstrate(
    folder: Path,
    phases: Phases,
    console: Console,
    interrupt: Interrupt,
    *,
    port: int,
    once: bool,
) -> None:
    models = models_directory()
    await _prepare_models(models, phases)
    try:
        plan = read_plan([folder], Machine(models=models))
    except ManifestErrors as failure:
        raise UsageError(str(failure)) from failure
    settings = GatewaySettings(port=port, drain_seconds=10.0)
    async with running_stack(plan, settings, phases) as stack:
        with phases.phase("replicas: vLLM twice, Transformers once") as show:
            await stack.until_ready(show, timeout_seconds=900.0)
        console.print(replica_table(await stack.statuses()))
        with phases.phase("three requests and their checks"):
            wrong = await _ask(stack, console)
        console.print(phases.table())
        if once:
            if wrong:
                raise RunError("the demo is not right: " + "; ".join(wrong))
            console.print("[bold green]All is right.[/bold green]")
            return
        interrupt.end_orderly()
        for problem in wrong:
            console.print(f"[yellow]not as expected:[/yellow] {escape(problem)}")
        console.print(endpoint_text(stack))
        console.print(
            f'Ask it: curl {stack.gateway.url}/v1/chat/completions -H "content-type: '
            f"application/json\" -d '{json.dumps(_chat(POLICY))}'",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        console.print("Ctrl-C ends it.")
        await interrupt.requested.wait()
        console.print(STOPPING)


async def _prepare_models(models: Path, phases: Phases) -> None:
    """Make both models where they are not there yet."""

    def percent(show: Callable[[str], None]) -> Callable[[int, int], None]:
        return lambda done, total: show(f"{100 * done // max(total, 1)} %")

    try:
        with phases.phase(f"model {DENSE} ({SMOLLM2.title})") as show:
            await asyncio.to_thread(
                import_packaged_model, SMOLLM2, models / DENSE, progress=percent(show)
            )
        with phases.phase(f"model {MOE} (4 experts, 2 a token)") as show:
            options = UpcycleOptions(experts=4, top_k=2)
            await asyncio.to_thread(
                upcycle_model, models / DENSE, models / MOE, options, progress=percent(show)
            )
    except (ModelSourceError, ModelFolderError) as error:
        raise RunError(str(error)) from error


async def _ask(stack: Stack, console: Console) -> list[str]:
    """Send the requests and show the answers.

    Returns:
        What is not as it should be.
    """
    wrong = []
    async with _session(stack) as http:
        plain = await _plain(http, DENSE)
        _show(console, f"1. plain, to {DENSE}", plain)
        if "Paris" not in plain.text:
            wrong.append(f"{DENSE} does not name Paris but says {plain.text!r}")
        streamed = await _streamed(http, DENSE)
        _show(console, f"2. the same, streamed in {streamed.events} events", streamed)
        if streamed.text != plain.text:
            wrong.append(f"the stream says {streamed.text!r}, the plain answer {plain.text!r}")
        explanation = await _explain(http)
        console.print(f"\n[bold]3. explained, to {POLICY}[/bold]", explanation_table(explanation))
        console.print(escape(explanation["reason"]))
        winner = (explanation["winner"]["pool"], explanation["winner"]["replica"])
        routed = await _plain(http, POLICY)
        _show(console, "   and sent", routed)
        if winner != (routed.pool, routed.replica):
            wrong.append(
                f"explain's winner is {winner}, but the request went to "
                f"{(routed.pool, routed.replica)}"
            )
        before = await _expert_calls(stack)
        expert = await _plain(http, MOE)
        calls = await _expert_calls(stack) - before
        _show(console, f"   the mixture of experts, {calls:.0f} expert calls", expert)
        if calls <= 0:
            wrong.append(f"the expert calls of {MOE} did not rise")
    return wrong


def _chat(model: str, *, stream: bool = False) -> dict[str, object]:
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 24,
    }
    return body | {"stream": True} if stream else body


@asynccontextmanager
async def _session(stack: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
    async with aiohttp.ClientSession(f"{stack.gateway.url}/v1/", timeout=timeout) as http:
        yield http


async def _plain(http: aiohttp.ClientSession, model: str) -> Answer:
    started = time.monotonic()
    async with http.post("chat/completions", json=_chat(model)) as reply:
        document = await _json(reply)
        return Answer(
            text=document["choices"][0]["message"]["content"],
            pool=reply.headers["x-pointsman-pool"],
            replica=reply.headers["x-pointsman-replica"],
            seconds=time.monotonic() - started,
        )


async def _streamed(http: aiohttp.ClientSession, model: str) -> Answer:
    started = time.monotonic()
    parts = []
    async with http.post("chat/completions", json=_chat(model, stream=True)) as reply:
        if reply.status != 200:
            await _json(reply)
        async for line in reply.content:
            data = line.decode().removeprefix("data: ").strip()
            if data and data != "[DONE]":
                event = json.loads(data)
                if "error" in event:
                    raise RunError(f"the stream broke: {event['error']}")
                parts += [choice["delta"].get("content") or "" for choice in event["choices"]]
        return Answer(
            text="".join(parts),
            pool=reply.headers["x-pointsman-pool"],
            replica=reply.headers["x-pointsman-replica"],
            seconds=time.monotonic() - started,
            events=sum(map(bool, parts)),
        )


async def _explain(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.post("route/explain", json=_chat(POLICY)) as reply:
        return await _json(reply)


async def _expert_calls(stack: Stack) -> float:
    """The expert calls that the replicas of the mixture of experts have counted."""
    total = 0.0
    async with aiohttp.ClientSession() as http:
        status = (await stack.statuses())[MOE]
        for replica in status.replicas:
            url = f"http://{replica.host}:{replica.port}{status.base_path}/metrics"
            async with http.get(url) as reply:
                total += sum(map(float, _EXPERT_CALLS.findall(await reply.text())))
    return total


async def _json(reply: aiohttp.ClientResponse) -> dict[str, Any]:
    document: dict[str, Any] = await reply.json(content_type=None)
    if reply.status != 200:
        raise RunError(f"{reply.url} answered {reply.status}: {document}")
    return document


def _show(console: Console, title: str, answer: Answer) -> None:
    console.print(
        f"\n[bold]{escape(title)}[/bold] → {answer.pool}, replica {answer.replica}, "
        f"{answer.seconds:.2f} s\n   {escape(answer.text)}"
    )


if __name__ == "__main__":
    with shown_errors():
        typer.run(demo)
