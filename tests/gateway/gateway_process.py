"""A gateway in a process of its own, in front of a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pointsman_api.route_table import (
    BackendType,
    ExternalEndpoint,
    PoolEntry,
    RouteTable,
    dump_route_table,
)
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.harness import table_of

PROGRAM = """
import asyncio, json, sys, uvloop
from pointsman_api.route_table import load_route_table
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings

async def main():
    settings = GatewaySettings(port=0, **json.loads(sys.argv[1]))
    gateway = Gateway(settings=settings, table=load_route_table(sys.stdin.buffer.read()))
    serving = asyncio.ensure_future(gateway.serve([]))
    while not gateway.listening:
        await asyncio.sleep(0.01)
    print("port", gateway.port, flush=True)
    await serving
    print("ended", flush=True)

uvloop.run(main())
"""


@dataclass
class GatewayProcess:
    process: asyncio.subprocess.Process
    port: int

    async def ended(self) -> int:
        """Wait for its orderly end; returns the exit status."""
        assert self.process.stdout is not None
        output = await asyncio.wait_for(self.process.stdout.read(), 10)
        assert output.strip().endswith(b"ended")
        return await self.process.wait()


@contextlib.asynccontextmanager
async def gateway_process(
    engine: FakeEngine, *, drain_seconds: float = 1.0, **settings: float
) -> AsyncIterator[GatewayProcess]:
    """Start one; the engine is behind an External pool, for which no source is needed."""
    endpoint = ExternalEndpoint(url=f"http://127.0.0.1:{engine.port}/v1", model_name="m")
    pool = PoolEntry(
        name="p",
        served_model_name="m",
        backend=BackendType.EXTERNAL,
        external_endpoints=(endpoint,),
    )
    table = RouteTable(pools={"p": pool}, routes=table_of().routes)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        json.dumps({"drain_seconds": drain_seconds, **settings}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(dump_route_table(table))
        process.stdin.close()
        port = 0
        while not port:
            line = await asyncio.wait_for(process.stdout.readline(), 30)
            assert line, "the gateway ended at once"
            port = int(line.split()[1]) if line.startswith(b"port") else 0
        yield GatewayProcess(process, port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
