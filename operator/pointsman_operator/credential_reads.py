"""Reads the Secrets that External pools name, so that no route table ever waits for them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping

from pointsman_kube.identity import Key
from pointsman_operator.secret_reader import SecretReader
from pointsman_operator.work_queue import WorkQueue

Data = Mapping[str, str]
"""Of a Secret: base64 text by key."""


class CredentialReads:
    """What was read last of each Secret that is wanted. One that cannot be read holds up no other.

    Args:
        changed: called when a Secret was read for the first time, or says something else.
    """

    def __init__(
        self,
        secrets: SecretReader,
        *,
        changed: Callable[[], None],
        source: random.Random | None = None,
    ) -> None:
        self._secrets = secrets
        self._changed = changed
        self._source = source or random.Random()
        self._wanted: frozenset[Key] = frozenset()
        self._data: dict[Key, Data | None] = {}
        self._news = asyncio.Event()
        self.queue = WorkQueue("credentials", self._read, workers=8, timeout_seconds=30.0)

    def want(self, names: Iterable[Key]) -> None:
        """From now on these Secrets are read again and again, and no others."""
        before, self._wanted = self._wanted, frozenset(names)
        for key in before - self._wanted:
            self.queue.forget(key)
            self._data.pop(key, None)
            self._secrets.forget(*key)
        for key in self._wanted - before:
            self.queue.add(key)

    def data(self) -> dict[Key, Data | None]:
        """What was read of the Secrets; None where there is none."""
        return dict(self._data)

    async def wait_for(self, names: Iterable[Key], *, most_seconds: float) -> None:
        """Wait until each of these was read once, but not for longer than that."""
        missing = self._wanted.intersection(names)
        try:
            async with asyncio.timeout(most_seconds):
                while not missing <= self._data.keys():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return

    async def _read(self, key: Key) -> float | None:
        secret = await self._secrets.read(*key)
        if key not in self._wanted:
            self._secrets.forget(*key)
            return None
        data = None if secret is None else dict(secret.get("data") or {})
        if key not in self._data or self._data[key] != data:
            self._data[key] = data
            self._news.set()
            self._changed()
        missing = secret is None
        seconds = self._secrets.missing_ttl_seconds if missing else self._secrets.ttl_seconds
        # Not before what was read has run out.
        return seconds * (1.0 + 0.2 * self._source.random())
