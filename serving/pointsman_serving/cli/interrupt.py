"""Ctrl-C and SIGTERM, from the first second of a command to its orderly end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import uvloop


class Interrupt:
    """The wish to end, by SIGINT or SIGTERM. A second signal ends the process in the usual way."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self._orderly = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def end_orderly(self) -> None:
        """From here on the work looks at ``requested`` itself, and is not cancelled."""
        self._orderly = True

    @property
    def orderly(self) -> bool:
        """Whether the work ends by itself when asked to."""
        return self._orderly

    def _on_signal(self, number: signal.Signals) -> None:
        self.requested.set()
        asyncio.get_running_loop().remove_signal_handler(number)


def run_interruptible(work: Callable[[Interrupt], Awaitable[None]]) -> bool:
    """Run a command's work on uvloop, as the gateway wants it.

    Returns:
        Whether the work came to its own end; False if it was interrupted before it could.
    """

    async def run() -> bool:
        interrupt = Interrupt()
        task = asyncio.ensure_future(work(interrupt))
        asked = asyncio.create_task(interrupt.requested.wait())
        await asyncio.wait([task, asked], return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not task.done() and not interrupt.orderly:
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return False
        return True

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
