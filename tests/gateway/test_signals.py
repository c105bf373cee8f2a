"""A gateway in a process of its own, ended as Kubernetes and people end it."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from tests.gateway.fake_engine import DONE, FakeEngine, stream_of
from tests.gateway.harness import Client, chat, events, post, until

PROGRAM = """
import asyncio, sys, uvloop
from pointsman_api.route_table import load_route_table
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings

async def main():
    table = load_route_table(sys.stdin.buffer.read())
    gateway = Gateway(settings=GatewaySettings(port=0, drain_seconds=1.0), table=table)
    serving = asyncio.ensure_future(gateway.serve([]))
    while not gateway.listening:
        await asyncio.sleep(0.01)
    print("port", gateway.port, flush=True)
    await serving
    print("ended", flush=True)

uvloop.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.pain_14
async def test_signal_ends_streams_with_the_error_event_when_they_outlast_the_drain(
    engine: FakeEngine, number: signal.Signals
) -> None:
    from pointsman_api.route_table import (
        BackendType,
        ExternalEndpoint,
        PoolEntry,
        RouteTable,
        dump_route_table,
    )
    from tests.gateway.harness import table_of

    engine.behaviour = stream_of(["a"] * 1000, gap=0.02)
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
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(chat(stream=True)))
        await until(lambda: engine.active == 1)
        process.send_signal(number)
        reply = await Client(reader, writer).answer()
        assert b"gateway_stopping" in events(reply.body)[-2]
        assert events(reply.body)[-1] == DONE
        assert reply.complete
        writer.close()
        output = await asyncio.wait_for(process.stdout.read(), 10)
        assert output.strip().endswith(b"ended")
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
