"""Reads Secrets by name, and remembers them for a while: none is ever listed or watched."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pointsman_kube.client import Kube
from pointsman_kube.errors import Forbidden, NotFound
from pointsman_kube.identity import Key
from pointsman_kube.kinds import SECRET, Object, Ref


@dataclass(frozen=True, slots=True)
class _Read:
    at: float
    secret: Object | None


class SecretReader:
    """A cache in front of ``get secrets``.

    Args:
        ttl_seconds: how long an answer is good for, at least. With many Secrets it is longer, so
            that reading them again never takes more than ``most_per_second`` calls.
        missing_ttl_seconds: the same for the answer that there is none: somebody waits for it.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        ttl_seconds: float = 30.0,
        missing_ttl_seconds: float = 5.0,
        most_per_second: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._ttl_seconds = ttl_seconds
        self._missing_ttl_seconds = missing_ttl_seconds
        self._most_per_second = most_per_second
        self._clock = clock
        self._held: dict[Key, _Read] = {}
        self._reading: dict[Key, asyncio.Lock] = {}

    @property
    def ttl_seconds(self) -> float:
        """How long an answer is good for now."""
        return max(self._ttl_seconds, len(self._held) / self._most_per_second)

    @property
    def missing_ttl_seconds(self) -> float:
        """How long the answer that there is no Secret is good for now."""
        missing = sum(held.secret is None for held in self._held.values())
        return max(self._missing_ttl_seconds, missing / self._most_per_second)

    async def read(
        self, namespace: str, name: str, *, most_age_seconds: float | None = None
    ) -> Object | None:
        """The Secret; None where there is none, or we may not read it.

        Args:
            most_age_seconds: an answer that is older is asked for again; ``ttl_seconds`` if None.
        """
        key = (namespace, name)
        limit = self.ttl_seconds if most_age_seconds is None else most_age_seconds
        if (held := self._fresh(key, limit)) is not None:
            return held.secret
        async with self._reading.setdefault(key, asyncio.Lock()):
            if (held := self._fresh(key, limit)) is not None:
                return held.secret
            ref = Ref(kind=SECRET, namespace=namespace, name=name)
            try:
                secret: Object | None = await self._kube.get(ref)
            except (NotFound, Forbidden):
                secret = None
            self.take(namespace, name, secret)
            return secret

    def held(self, namespace: str, name: str) -> Object | None:
        """What was read last, however old."""
        read = self._held.get((namespace, name))
        return None if read is None else read.secret

    def take(self, namespace: str, name: str, secret: Object | None) -> None:
        """A write of ours returned this, or it was found missing."""
        if secret is not None:
            secret["metadata"].pop("managedFields", None)
        self._held[namespace, name] = _Read(self._clock(), secret)

    def forget(self, namespace: str, name: str) -> None:
        """Ask again next time: it turned out to be wrong, or nobody names it any more."""
        self._held.pop((namespace, name), None)
        self._reading.pop((namespace, name), None)

    def _fresh(self, key: Key, most_age_seconds: float) -> _Read | None:
        held = self._held.get(key)
        if held is None:
            return None
        if held.secret is None:
            most_age_seconds = min(most_age_seconds, self.missing_ttl_seconds)
        if self._clock() - held.at >= most_age_seconds:
            return None
        return held


def decoded(secret: Mapping[str, object] | None) -> dict[str, str]:
    """The values of a Secret as text; what is not text is left out."""
    data = (secret or {}).get("data")
    values: dict[str, str] = {}
    for name, value in (data if isinstance(data, Mapping) else {}).items():
        try:
            values[str(name)] = base64.b64decode(str(value), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
    return values
