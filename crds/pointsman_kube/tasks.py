"""Ending tasks."""

from __future__ import annotations

import asyncio
from typing import Any


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended, whatever it ends with.

    A caller that is cancelled while it waits is cancelled: only the task's own end is passed over.
    """
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        # Nobody asks for it any more, and asyncio would complain about it.
        task.exception()
