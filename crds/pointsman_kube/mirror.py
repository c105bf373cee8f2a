"""A local copy of all objects of one kind that never keeps one which is gone."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import structlog

from pointsman_kube.backoff import Backoff
from pointsman_kube.client import Kube
from pointsman_kube.errors import Gone, KindNotServed, KubeError
from pointsman_kube.kinds import Kind, Object

log = structlog.get_logger(__name__)

Key = tuple[str, str]
"""Namespace (empty where the kind has none) and name."""

OnChange = Callable[[Key, Object | None, Object | None], None]
"""Told the key, the object before (None: new) and after (None: deleted)."""

_NOT_SERVED_TIMES = 3
"""A kind that was served counts as removed only after this many refusals: a starting API server
may not know its CRDs yet."""


class Mirror:
    """Lists and watches one kind; callbacks tell what changed, also what was missed.

    After every connection whose history has a gap (the first, one after 410 Gone or an error) all
    objects are listed again and compared with what is held, so that a deletion which happened
    meanwhile is told like any other. While the server is away, the last state stays.

    Args:
        kube: the connection.
        kind: what to mirror.
        namespace: only there; None for everywhere.
        on_change: called for every change, in the event loop; it must not block.
        on_listed: called after every list, that is after every gap.
        on_served: told when it becomes known, or changes, whether the server knows the kind.
        transform: what to keep of an object, to save memory; managedFields never stay.
        indexes: by name, functions from an object to the values under which it is found.
        retry_most_seconds: longest wait between two tries, and between looks for a missing CRD.
    """

    def __init__(
        self,
        kube: Kube,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        on_change: OnChange = lambda key, old, new: None,
        on_listed: Callable[[], None] = lambda: None,
        on_served: Callable[[bool], None] = lambda served: None,
        transform: Callable[[Object], Object] = lambda obj: obj,
        indexes: Mapping[str, Callable[[Object], Iterable[Hashable]]] | None = None,
        retry_most_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        source: random.Random | None = None,
    ) -> None:
        self.kind = kind
        self.served: bool | None = None
        """Whether the server knows the kind; None before its first answer."""
        self.last_error = ""
        """Why the server's word is missing; empty while it is there."""
        self.on_change = on_change
        self._on_listed = on_listed
        self._on_served = on_served
        self._limit: asyncio.Timeout | None = None
        self._kube = kube
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._transform = transform
        self._indexes = dict(indexes or {})
        self._found: dict[str, dict[Hashable, dict[Key, None]]] = {
            name: {} for name in self._indexes
        }
        self._objects: dict[Key, Object] = {}
        self._clock = clock
        self._heard = clock()
        self._backoff = Backoff(most_seconds=retry_most_seconds, source=source or random.Random())
        self._refusals = 0
        self._answered = asyncio.Event()

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        return iter(self._objects.values())

    def keys(self) -> Iterable[Key]:
        """The keys of all objects."""
        return self._objects.keys()

    def get(self, namespace: str, name: str) -> Object | None:
        """The object, or None. Not a copy: leave it as it is."""
        return self._objects.get((namespace, name))

    def find(self, index: str, value: Hashable) -> list[Object]:
        """The objects that an index has under a value."""
        return [self._objects[key] for key in self._found[index].get(value, ())]

    @property
    def age_seconds(self) -> float:
        """Seconds since the server last said anything; it does so about once a minute."""
        return self._clock() - self._heard

    async def answered(self) -> None:
        """Wait until the state is known: listed once, or the kind is not there."""
        await self._answered.wait()

    def take(self, obj: Object) -> None:
        """Hold an object that a write has just returned, before the watch tells it."""
        self._take(_key(obj), obj)

    def drop(self, namespace: str, name: str, *, uid: str) -> None:
        """Forget an object that has just been deleted for good."""
        held = self._objects.get((namespace, name))
        if held is not None and held["metadata"].get("uid") == uid:
            self._remove((namespace, name))

    def doubt(self) -> None:
        """A write was answered as if the kind were unknown: list again.

        A server does not end the watches of a CRD that was deleted, for a while.
        """
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Follow the server until cancelled."""
        version: str | None = None
        while True:
            try:
                if version is None:
                    version = await self._list()
                version = await self._watch(version)
            except Gone:
                version = None
                # A server that answers every watch so must not be asked in a tight loop.
                await asyncio.sleep(self._backoff.next_seconds())
            except KindNotServed as error:
                version = None
                self._not_served(error)
                await asyncio.sleep(self._backoff.next_seconds())
            except KubeError as error:
                if error.status >= 500:
                    # The server may have come back with another history (a restored backup).
                    version = None
                self._failed(error)
                await asyncio.sleep(self._backoff.next_seconds(error.retry_after_seconds))

    async def _list(self) -> str:
        items, version = await self._kube.list(
            self.kind,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        self._hear()
        if self.served is False:
            log.info("kind is served now", kind=self.kind.resource)
        changed, self.served = self.served is not True, True
        listed = {_key(obj): obj for obj in items}
        for key in [key for key in self._objects if key not in listed]:
            self._remove(key)
        for key, obj in listed.items():
            held = self._objects.get(key)
            if held is None or _version(held) != _version(obj):
                self._put(key, obj)
        self._answered.set()
        if changed:
            self._on_served(True)
        self._on_listed()
        return version

    async def _watch(self, version: str) -> str | None:
        try:
            async with asyncio.timeout(None) as self._limit:
                return await self._follow(version)
        except TimeoutError:
            return None
        finally:
            self._limit = None

    async def _follow(self, version: str) -> str:
        events = self._kube.watch(
            self.kind,
            self._namespace,
            resource_version=version,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        try:
            async for event, obj in events:
                self._hear()
                if event == "DELETED":
                    self._deleted(_key(obj), obj)
                elif event != "BOOKMARK":
                    self._take(_key(obj), obj)
                version = _version(obj)
        except KubeError as error:
            if isinstance(error, Gone | KindNotServed) or error.status >= 400:
                raise
            # The connection broke: what came until then holds, and the rest can be asked for.
            self._failed(error)
            await asyncio.sleep(self._backoff.next_seconds(error.retry_after_seconds))
        else:
            # An orderly end. A server that goes down ends all watches so, at once.
            await asyncio.sleep(self._backoff.jitter * self._backoff.source.random())
        finally:
            await events.aclose()
        return version

    def _hear(self) -> None:
        self._heard = self._clock()
        self._refusals = 0
        self._backoff.reset()
        if self.last_error:
            log.info("watch is back", kind=self.kind.resource)
            self.last_error = ""

    def _failed(self, error: KubeError) -> None:
        if not self.last_error:
            log.warning("watch is away; the last state stays", cause=str(error))
        self.last_error = str(error)

    def _not_served(self, error: KubeError) -> None:
        self._heard = self._clock()
        self._refusals += 1
        if self.served and self._refusals < _NOT_SERVED_TIMES:
            return
        changed, self.served = self.served is not False, False
        if changed:
            log.warning("kind is not served; waiting for its CRD", kind=self.kind.resource)
        self.last_error = str(error)
        for key in list(self._objects):
            self._remove(key)
        self._answered.set()
        if changed:
            self._on_served(False)

    def _take(self, key: Key, obj: Object) -> None:
        held = self._objects.get(key)
        if held is not None and _is_older_or_same(obj, held):
            return
        self._put(key, obj)

    def _deleted(self, key: Key, obj: Object) -> None:
        held = self._objects.get(key)
        # Its namesake, made since then, may be known already from the write that made it.
        if held is not None and held["metadata"].get("uid") == obj["metadata"].get("uid"):
            self._remove(key)

    def _put(self, key: Key, obj: Object) -> None:
        obj["metadata"].pop("managedFields", None)
        new = self._transform(obj)
        old = self._objects.get(key)
        self._unindex(key, old)
        self._objects[key] = new
        for name, values_of in self._indexes.items():
            for value in values_of(new):
                self._found[name].setdefault(value, {})[key] = None
        self.on_change(key, old, new)

    def _remove(self, key: Key) -> None:
        old = self._objects.pop(key)
        self._unindex(key, old)
        self.on_change(key, old, None)

    def _unindex(self, key: Key, old: Object | None) -> None:
        if old is None:
            return
        for name, values_of in self._indexes.items():
            found = self._found[name]
            for value in values_of(old):
                keys = found.get(value)
                if keys is None:
                    continue
                keys.pop(key, None)
                if not keys:
                    del found[value]


def _key(obj: Mapping[str, Any]) -> Key:
    metadata = obj["metadata"]
    return str(metadata.get("namespace", "")), str(metadata["name"])


def _version(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"].get("resourceVersion", ""))


def _is_older_or_same(obj: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    """Versions of one kind grow with every change (KEP-5504 makes that a promise)."""
    if obj["metadata"].get("uid") != held["metadata"].get("uid"):
        return False
    new, old = _version(obj), _version(held)
    return new == old or (new.isdigit() and old.isdigit() and int(new) < int(old))
