"""The engine VLLM as a program of its own: its replica's application behind uvicorn.

``python -m tests.e2e.vllm_server MODEL_FOLDER [vLLM's arguments]`` prints where it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

from pointsman_api.modelpool import EngineType
from pointsman_serving.engines.identity import IdentityHeaders, ReplicaIdentity
from pointsman_serving.engines.options import ReplicaOptions
from pointsman_serving.engines.revision import token_revision
from pointsman_serving.engines.start import start_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

READY = "serves on "


class Server(uvicorn.Server):
    """Leaves signals to the program: uvicorn's own would end it before the engine is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def main(model_path: str, *arguments: str) -> None:
    """Serve until told to stop."""
    options = ReplicaOptions(
        pool="m",
        engine=EngineType.VLLM,
        served_model_name="m",
        model_path=model_path,
        max_sequences=16,
        context_tokens=512,
        arguments=arguments,
    )
    engine = await start_engine(options)
    app = IdentityHeaders(engine.app, ReplicaIdentity.new(token_revision(options)))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
    server = Server(config)

    def stop() -> None:
        server.should_exit = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    print(f"{READY}http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    try:
        await server.serve(sockets=[listener])
    finally:
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
