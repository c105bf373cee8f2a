"""The replicas of a run: processes that come, go and misbehave, and the list that names them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.chaos import engine_process
from tests.chaos.faults import Card, FaultKind
from tests.chaos.network import Namespace, NoNamespaceError

# Engines that are forked from a process with everything imported start in milliseconds, and a
# start takes no processor time from the streams that are measured.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.chaos.engine_process", "tests.chaos.gateway_process"])

START_SECONDS = 60.0


@dataclass(slots=True, kw_only=True, eq=False)
class Replica:
    """One life of an engine."""

    name: str
    process: ForkServerProcess
    host: str
    port: int

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still lives."""
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """A place for a replica, with its network where it has one of its own."""

    number: int
    namespace: Namespace | None
    replica: Replica | None = None
    listed: bool = False
    well: bool = False


class Fleet:
    """Engines, and the file in which gateways find them.

    Args:
        count: how many.
        flags: of the Simulated engine.
        slots: what the list says each can run at once.
        listing: the file; see :class:`tests.chaos.gateway_process.FileSource`.
    """

    def __init__(self, count: int, *, flags: Sequence[str], slots: int, listing: Path) -> None:
        self._flags = tuple(flags)
        self._sequence_slots = slots
        self._listing = listing
        self._slots = [Slot(number=number, namespace=None) for number in range(count)]
        self._lives: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self.done: Counter[FaultKind] = Counter()
        self.no_drop = ""
        """Why no packets can be dropped; empty: they can."""

    @contextlib.asynccontextmanager
    async def running(self, *, namespaces: bool) -> AsyncIterator[Fleet]:
        """Start all; at the end kill all.

        Args:
            namespaces: give each engine a network of its own, where the machine allows.
        """
        try:
            if namespaces:
                self._lay_networks()
            else:
                self.no_drop = "not asked for"
            await asyncio.gather(*(self._start(slot) for slot in self._slots))
            yield self
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for slot in self._slots:
                await self._kill(slot)
                if slot.namespace is not None:
                    slot.namespace.delete()

    @property
    def well(self) -> list[Slot]:
        """The places whose replica nothing ails."""
        return [slot for slot in self._slots if slot.well]

    @property
    def room(self) -> bool:
        """Whether one more may be taken away: never more than a third."""
        return len(self._slots) - len(self.well) < len(self._slots) // 3

    @property
    def kinds(self) -> list[FaultKind]:
        """What can be done here."""
        return [kind for kind in FaultKind if not (kind is FaultKind.DROP and self.no_drop)]

    def strike(self, slot: Slot, card: Card) -> str:
        """Do it; what has to follow comes by itself. Returns whom it met."""
        replica = slot.replica
        assert replica is not None
        self.done[card.kind] += 1
        if card.kind is FaultKind.RESET:
            replica.signal(signal.SIGUSR2)
        else:
            slot.well = False
            task = asyncio.ensure_future(self._suffer(slot, replica, card))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return replica.name

    async def recovered(self) -> None:
        """Wait until every replica is well."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def _suffer(self, slot: Slot, replica: Replica, card: Card) -> None:
        begin = {FaultKind.STOP: signal.SIGSTOP, FaultKind.HANG: signal.SIGUSR1}
        end = {FaultKind.STOP: signal.SIGCONT, FaultKind.HANG: signal.SIGUSR1}
        if card.kind in begin:
            replica.signal(begin[card.kind])
            await asyncio.sleep(card.lasts_seconds)
        elif card.kind is FaultKind.DROP and slot.namespace is not None:
            slot.namespace.drop()
            await asyncio.sleep(card.lasts_seconds)
        if card.kind is FaultKind.KILL or card.fatal:
            await self._replace(slot, card)
        elif card.kind in end:
            replica.signal(end[card.kind])
        if card.kind is FaultKind.DROP and slot.namespace is not None:
            slot.namespace.restore()
        slot.well = True

    async def _replace(self, slot: Slot, card: Card) -> None:
        await self._kill(slot)
        first = min(card.listed_seconds, card.restart_seconds)
        await asyncio.sleep(first)
        if card.listed_seconds <= card.restart_seconds:
            slot.listed = False
            self._publish()
        await asyncio.sleep(card.restart_seconds - first)
        # Its successor is listed in its place at the latest.
        await self._start(slot)

    async def _start(self, slot: Slot) -> None:
        life = self._lives[slot.number]
        self._lives[slot.number] += 1
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(
            target=engine_process.serve, args=(self._flags, slot.namespace, theirs), daemon=True
        )
        process.start()
        theirs.close()
        name = f"e{slot.number}-{life}"
        port = await said(ours, process, name)
        host = "127.0.0.1" if slot.namespace is None else slot.namespace.address
        slot.replica = Replica(name=name, process=process, host=host, port=port)
        slot.listed = slot.well = True
        self._publish()

    async def _kill(self, slot: Slot) -> None:
        slot.well = False
        replica = slot.replica
        if replica is not None and replica.process.is_alive():
            replica.process.kill()
            await asyncio.to_thread(replica.process.join, START_SECONDS)

    def _publish(self) -> None:
        listed = [
            {
                "name": slot.replica.name,
                "host": slot.replica.host,
                "port": slot.replica.port,
                "slots": self._sequence_slots,
            }
            for slot in self._slots
            if slot.listed and slot.replica is not None
        ]
        new = self._listing.with_suffix(".new")
        new.write_text(json.dumps({"p": listed}))
        new.replace(self._listing)

    def _lay_networks(self) -> None:
        try:
            for slot in self._slots:
                slot.namespace = Namespace.create(slot.number)
        except NoNamespaceError as error:
            self.no_drop = str(error)
            for slot in self._slots:
                if slot.namespace is not None:
                    slot.namespace.delete()
                    slot.namespace = None


async def said(
    pipe: multiprocessing.connection.Connection, process: ForkServerProcess, name: str
) -> int:
    """The port that a new process listens on.

    Raises:
        RuntimeError: it ended, or said nothing in time.
    """
    try:
        if not await asyncio.to_thread(pipe.poll, START_SECONDS):
            raise RuntimeError(f"{name} did not start within {START_SECONDS:g} s")
        return int(pipe.recv())
    except EOFError:
        raise RuntimeError(f"{name} ended with exit code {process.exitcode}") from None
    finally:
        pipe.close()
