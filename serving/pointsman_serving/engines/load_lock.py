"""Engines of one machine take turns to load where cores are few.

Loading is one busy thread for tens of seconds (imports, weights, warm-up). As many engines as
there are cores load at once; more would only make each other slow, and the first replica would
be ready when the last is. Measured with two vLLM replicas on two cores: 71 s side by side, 92 s
in turn.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

LOAD_LOCK_VARIABLE = "POINTSMAN_ENGINE_LOAD_LOCK"
"""``COUNT:FOLDER``: so many engines load at once, by lock files in the folder. Unset or empty:
engines do not wait for each other."""
_RETRY_SECONDS = 0.2


@asynccontextmanager
async def turn_to_load(
    environment: Mapping[str, str] = os.environ, *, retry_seconds: float = _RETRY_SECONDS
) -> AsyncIterator[None]:
    """Hold one of the machine's turns to load an engine.

    The turn ends with the process at the latest, however it ends.

    Raises:
        ValueError: the variable is not ``COUNT:FOLDER``.
    """
    setting = environment.get(LOAD_LOCK_VARIABLE, "")
    if not setting:
        yield
        return
    count, _, folder = setting.partition(":")
    if not count.isdigit() or int(count) < 1 or not folder:
        raise ValueError(
            f"{LOAD_LOCK_VARIABLE} is {setting!r}: give COUNT:FOLDER, such as 2:/tmp/locks, or "
            "leave it unset"
        )
    descriptor = await _acquire(Path(folder), int(count), retry_seconds)
    try:
        yield
    finally:
        os.close(descriptor)


async def _acquire(folder: Path, count: int, retry_seconds: float) -> int:
    while True:
        for turn in range(count):
            descriptor = os.open(
                folder / f"engine-load-{turn}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return descriptor
        await asyncio.sleep(retry_seconds)
