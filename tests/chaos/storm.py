"""One run: gateways, replicas, clients and faults, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pointsman_api.route_table import Resilience, RouteTable, dump_route_table
from pointsman_serving.engines.simulated.options import SimulatedOptions, parse_simulated_args
from tests.chaos import gateway_process
from tests.chaos.counters import settled
from tests.chaos.faults import Deck
from tests.chaos.fleet import CONTEXT, Fleet, said
from tests.chaos.stream import Observed, ask, request_bytes
from tests.chaos.verdict import Verdict, expected_of, judge
from tests.gateway.harness import table_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large and how long."""

    seed: int = 7
    engines: int = 8
    sequences: int = 64
    """That one engine runs at once."""
    streams: int = 210
    """Open at any time at the gateway that survives."""
    others: int = 30
    """Open at the gateway that is killed, and then at the one that replaces it."""
    tokens: int = 220
    """Of an answer, about."""
    token_seconds: float = 0.1
    seconds: float = 120.0
    """Of faults."""
    every_seconds: float = 2.0
    calm: bool = False
    """No faults at all: shows what the machine can carry."""
    namespaces: bool = True
    """A network of its own for each engine, whose packets can be dropped."""
    replace_gateway: bool = True
    """Half-way one gateway is killed, and its successor later told to end."""
    drain_seconds: float = 60.0
    gap_p99_seconds: float = 5.0
    """How long the longest gap in a stream may be, at the 99th percentile of the streams."""

    @property
    def stream_seconds(self) -> float:
        """Of an unbroken stream, about."""
        return self.tokens * self.token_seconds

    @property
    def flags(self) -> list[str]:
        """Of the engines."""
        return [
            "--served-model-name=served",
            f"--max-num-seqs={self.sequences}",
            f"--iteration-seconds={self.token_seconds}",
            f"--output-mean-tokens={self.tokens}",
            "--output-sigma=0.02",
            "--max-model-len=8192",
            "--seed=11",
        ]

    def table(self) -> RouteTable:
        """One pool, and a policy that gives up late and notices early."""
        limits = Resilience(
            attempts=4,
            connect_timeout_seconds=0.5,
            first_token_timeout_seconds=10.0,
            between_tokens_timeout_seconds=2.0,
            request_timeout_seconds=300.0,
        )
        return table_of(
            engine="Simulated", model="assistant", slots=self.sequences, resilience=limits
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Port:
    """A gateway process."""

    name: str
    process: ForkServerProcess
    port: int
    killed: bool = False
    """Its streams may break."""
    ending: bool = False
    """It takes no new connections."""
    open: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecord:
    """One stream and where it was asked for."""

    name: str
    gateway: str
    counts: bool
    """False where its gateway was killed under it."""
    observed: Observed
    verdict: Verdict
    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True, kw_only=True)
class StormOutcome:
    """All that is reported."""

    records: list[StreamRecord] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    fewest_open: int = 0
    """Streams at the survivor at any moment of the faults."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the survivor, when all had ended."""
    exits: dict[str, int | None] = field(default_factory=dict)
    """Of gateways that were told to end."""
    seconds: float = 0.0


class Storm:
    """One run.

    Args:
        plan: how large and how long.
        logs: the gateways write there.
        say: gets a line for each thing that happens.
    """

    def __init__(self, plan: Plan, *, logs: Path, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._logs = logs
        self._say = say
        self._listing = logs / "replicas.json"
        self._options: SimulatedOptions = parse_simulated_args(plan.flags)
        self._outcome = StormOutcome()
        self._over = False
        self._numbers = 0
        self._start = time.monotonic()
        self._other: Port | None = None

    async def run(self) -> StormOutcome:
        """Everything, from the first process to the last count."""
        plan = self._plan
        self._logs.mkdir(parents=True, exist_ok=True)
        self._listing.write_text('{"p": []}')
        fleet = Fleet(plan.engines, flags=plan.flags, slots=plan.sequences, listing=self._listing)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(fleet.running(namespaces=plan.namespaces))
            if fleet.no_drop:
                self._outcome.left_out["drop"] = fleet.no_drop
                self._say(f"no packets are dropped: {fleet.no_drop}")
            survivor = await stack.enter_async_context(self._gateway("A"))
            self._other = await stack.enter_async_context(self._gateway("B"))
            await asyncio.sleep(1.0)
            self._say(
                f"seed {plan.seed}: {plan.engines} engines, {plan.streams} + {plan.others} "
                f"streams of about {plan.stream_seconds:g} s, faults for {plan.seconds:g} s"
            )
            clients = [self._client(n, survivor, survivor) for n in range(plan.streams)]
            clients += [self._client(plan.streams + n, None, survivor) for n in range(plan.others)]
            asking = asyncio.gather(*clients)
            await asyncio.sleep(plan.stream_seconds)
            trouble = [asyncio.ensure_future(self._watch(survivor))]
            if plan.replace_gateway and not plan.calm:
                trouble.append(asyncio.ensure_future(self._replace_gateway(stack)))
            await self._strike(fleet)
            trouble[0].cancel()
            await asyncio.gather(*trouble, return_exceptions=True)
            self._over = True
            await asking
            await fleet.recovered()
            self._outcome.faults = Counter({k.value: n for k, n in fleet.done.items()})
            self._outcome.metrics = await settled(survivor.port)
            self._outcome.seconds = self._now
        return self._outcome

    @property
    def _now(self) -> float:
        return time.monotonic() - self._start

    def _tell(self, what: str) -> None:
        self._say(f"{self._now:6.1f} s  {what}")

    @contextlib.asynccontextmanager
    async def _gateway(self, name: str) -> AsyncIterator[Port]:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(
            target=gateway_process.serve,
            args=(
                dump_route_table(self._plan.table()),
                self._listing,
                self._logs / f"gateway-{name}.log",
                self._plan.drain_seconds,
                theirs,
            ),
            daemon=True,
        )
        process.start()
        theirs.close()
        try:
            yield Port(
                name=name, process=process, port=await said(ours, process, f"gateway {name}")
            )
        finally:
            if process.is_alive():
                process.kill()
            await asyncio.to_thread(process.join, 10)

    # Clients.

    async def _client(self, number: int, home: Port | None, fallback: Port) -> None:
        """Ask one question after another until it is over."""
        plan = self._plan
        await asyncio.sleep(plan.stream_seconds * (number % 97) / 97)
        while not self._over:
            port = home or self._other or fallback
            if port.killed or port.ending:
                port = fallback
            await self._ask(f"{number}.{self._numbers}", port)

    async def _ask(self, name: str, port: Port) -> None:
        self._numbers += 1
        body = self._body(name)
        expected = expected_of(body, self._options)
        port.open += 1
        try:
            observed = await ask(
                "127.0.0.1",
                port.port,
                request_bytes("/v1/chat/completions", body, f"x-request-id: {self._id(name)}"),
                limit_seconds=self._plan.stream_seconds * 3 + 60,
            )
        finally:
            port.open -= 1
        if not observed.status and not observed.pieces and (port.killed or port.ending):
            await asyncio.sleep(0.1)
            return  # not even a connection: the client asks another gateway
        verdict = judge(observed, expected)
        self._outcome.records.append(
            StreamRecord(
                name=name,
                gateway=port.name,
                counts=not port.killed,
                observed=observed,
                verdict=verdict,
                prompt_tokens=expected.prompt_tokens,
                completion_tokens=expected.completion_tokens,
            )
        )
        if verdict.flaws and not port.killed:
            self._keep(name, observed)
            self._tell(f"✗ stream {name} at {port.name}: {verdict.flaws[0]}")
            await asyncio.sleep(0.5)

    def _id(self, name: str) -> str:
        """By which the gateways' logs name the stream."""
        return f"stream-{name}-of-{self._plan.seed}"

    def _keep(self, name: str, observed: Observed) -> None:
        """Write a flawed stream down, with the time of each piece since its request."""
        lines = [f"{at - observed.started_at:8.3f} {piece!r}" for at, piece in observed.pieces]
        (self._logs / f"{self._id(name)}.txt").write_text("\n".join(lines) + "\n")

    def _body(self, name: str) -> dict[str, object]:
        chance = random.Random(f"{self._plan.seed} {name}")
        words = " ".join(str(chance.randrange(10**6)) for _ in range(30))
        body: dict[str, object] = {
            "model": "assistant",
            "messages": [{"role": "user", "content": f"{name}: tell me of {words}"}],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if chance.random() < 0.5:
            # Cut by its limit; the others come to their own end.
            body |= {"max_tokens": self._plan.tokens, "ignore_eos": True}
        return body

    # Trouble.

    async def _watch(self, survivor: Port) -> None:
        fewest = survivor.open
        while True:
            fewest = min(fewest, survivor.open)
            self._outcome.fewest_open = fewest
            await asyncio.sleep(0.25)

    async def _strike(self, fleet: Fleet) -> None:
        plan = self._plan
        count = round(plan.seconds / plan.every_seconds)
        deck = Deck(fleet.kinds, count=count, seed=plan.seed)
        begin = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, begin + number * plan.every_seconds - time.monotonic()))
            if plan.calm:
                continue
            card = deck.draw(room=fleet.room)
            well = {str(slot.number): slot for slot in fleet.well}
            slot = well[deck.pick(list(well))]
            self._tell(f"{card.kind.value} {fleet.strike(slot, card)}")
        await asyncio.sleep(plan.every_seconds)

    async def _replace_gateway(self, stack: contextlib.AsyncExitStack) -> None:
        plan = self._plan
        await asyncio.sleep(plan.seconds / 2)
        killed = self._other
        assert killed is not None
        self._tell(f"the gateway {killed.name} is killed")
        killed.killed = True
        killed.process.kill()
        self._other = None
        await asyncio.sleep(min(3.0, plan.seconds / 20))
        successor = self._other = await stack.enter_async_context(self._gateway("C"))
        self._tell(f"the gateway {successor.name} has started")
        await asyncio.sleep(plan.seconds / 4)
        self._tell(f"the gateway {successor.name} is told to end")
        successor.ending = True
        assert successor.process.pid is not None
        os.kill(successor.process.pid, signal.SIGTERM)
        await asyncio.to_thread(successor.process.join, plan.drain_seconds + 10)
        self._outcome.exits[successor.name] = successor.process.exitcode
        self._tell(f"the gateway {successor.name} has ended: {successor.process.exitcode}")
