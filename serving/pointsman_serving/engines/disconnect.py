"""Work for a client that may leave: it ends with the connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.types import Receive


async def until_disconnected(receive: Receive, work: Coroutine[object, object, None]) -> None:
    """Run the work, but no longer than somebody listens.

    Args:
        receive: the request's ASGI channel; its body has been read.
        work: cancelled when the client leaves; what it raises before is raised here.
    """

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(work), asyncio.create_task(disconnected())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]
