"""A fake engine in a process of its own, which can be stopped or put behind a lossy link."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey

PROGRAM = """
import asyncio, sys
from tests.gateway.fake_engine import FakeEngine, stream_of

async def main():
    engine = FakeEngine(host=sys.argv[1], behaviour=stream_of(["a"] * 2000, gap=0.02))
    await engine.start()
    print(engine.port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass
class EngineProcess:
    """Streams 2,000 words, 20 ms apart."""

    process: asyncio.subprocess.Process
    host: str
    port: int

    def address(self, name: str = "child") -> ReplicaAddress:
        return ReplicaAddress(
            key=ReplicaKey("p", name),
            host=self.host,
            port=self.port,
            model_name="served",
            health_path="/health",
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def engine_process(
    host: str = "127.0.0.1", *, within: Sequence[str] = ()
) -> AsyncIterator[EngineProcess]:
    """Start one; ``within``: a command that runs it, such as ``ip netns exec NAME``."""
    process = await asyncio.create_subprocess_exec(
        *within, sys.executable, "-c", PROGRAM, host, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        yield EngineProcess(process, host, int(line))
    finally:
        process.kill()
        await process.wait()
