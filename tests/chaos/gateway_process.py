"""A gateway in a process of its own, whose replicas are listed in a file."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from pointsman_api.route_table import RouteTable, load_route_table
from pointsman_serving.gateway.discovery import Publish
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey


class FileSource:
    """Reads the list as the gateway reads Ray's: the whole of it, again and again.

    Args:
        path: JSON, ``{pool: [{"name", "host", "port", "slots"}]}``; replaced, never written into.
        interval_seconds: between two readings.
    """

    def __init__(self, path: Path, *, interval_seconds: float = 0.5) -> None:
        self._path = path
        self._interval_seconds = interval_seconds

    async def run(self, table: Callable[[], RouteTable], publish: Publish) -> None:
        """See :class:`pointsman_serving.gateway.discovery.ReplicaSource`."""
        while True:
            for pool, listed in json.loads(self._path.read_text()).items():
                model = table().pools[pool].served_model_name
                publish(
                    pool,
                    [
                        ReplicaAddress(
                            key=ReplicaKey(pool, each["name"]),
                            host=each["host"],
                            port=each["port"],
                            model_name=model,
                            health_path="/health",
                            sequence_slots=each["slots"],
                        )
                        for each in listed
                    ],
                )
            await asyncio.sleep(self._interval_seconds)


def serve(table: bytes, listing: Path, log: Path, drain_seconds: float, tell: Connection) -> None:
    """Serve until told to stop by a signal.

    Args:
        table: the route table as JSON.
        listing: the file with the replicas.
        log: the gateway's output goes there.
        drain_seconds: how long SIGTERM waits for streams.
        tell: gets the port once the gateway listens.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    uvloop.run(_serve(table, listing, drain_seconds, tell))


async def _serve(table: bytes, listing: Path, drain_seconds: float, tell: Connection) -> None:
    gateway = Gateway(
        settings=GatewaySettings(port=0, drain_seconds=drain_seconds),
        table=load_route_table(table),
    )
    serving = asyncio.ensure_future(gateway.serve([FileSource(listing)]))
    while not gateway.listening and not serving.done():
        await asyncio.sleep(0.01)
    if gateway.listening:
        tell.send(gateway.port)
        tell.close()
    await serving
