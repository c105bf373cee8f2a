"""The Transformers engine on a real socket."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from pointsman_serving.engines.transformers.app import load_transformers_app
from pointsman_serving.engines.transformers.options import parse_transformers_args

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# A cache of 20 pages of 8 tokens: small enough to fill.
ARGS = ("--block-size=8", "--num-blocks=20", "--max-num-batched-tokens=32", "--threads=1")


@asynccontextmanager
async def serving(folder: Path, *args: str, **kwargs: Any) -> AsyncIterator[tuple[str, Any]]:
    app = await load_transformers_app(
        parse_transformers_args([*ARGS, *args]),
        model_path=str(folder),
        model_name="moe",
        **{"experts": "Pointsman", **kwargs},
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", log_level="error", timeout_graceful_shutdown=1)
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.engine
    finally:
        server.should_exit = True
        await task
        await asyncio.to_thread(app.state.engine.stop)
