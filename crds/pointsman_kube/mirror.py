"""A local copy of all objects of one kind that never keeps one which is gone."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, KeysView, Mapping

import structlog

from pointsman_kube.backoff import Backoff
from pointsman_kube.client import Kube
from pointsman_kube.errors import (
    Forbidden,
    Garbled,
    Gone,
    KindNotServed,
    KubeError,
    Unavailable,
)
from pointsman_kube.held import HeldObjects, OnChange
from pointsman_kube.identity import Key, is_older_or_same, key_of, uid_of, version_of
from pointsman_kube.kinds import Kind, Object

log = structlog.get_logger(__name__)

_MOST_RETRY_AFTER_SECONDS = 60.0
"""A server that asks to be left alone for longer is asked again after this."""

_NOT_SERVED_TIMES = 3
"""A kind that was served counts as removed only after this many refusals: a starting API server
may not know its CRDs yet."""


class Mirror:
    """Lists and watches one kind; callbacks tell what changed, also what was missed.

    After every connection whose history has a gap (the first, one after 410 Gone or an error) all
    objects are listed again and compared with what is held, so that a deletion which happened
    meanwhile is told like any other. While the server is away, or refuses, the last state stays.

    A server that answers is not silent, whatever it answers: ``age_seconds`` tells a connection
    that a restart would mend, ``stale_seconds`` how old the state is, and ``refused`` why the
    server does not give it.

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
        self.refusal: KubeError | None = None
        """What the server answers instead of the objects, until it gives them: it is there, but
        we may not see them, or it does not take the question."""
        self._on_listed = on_listed
        self._on_served = on_served
        self._limit: asyncio.Timeout | None = None
        self._kube = kube
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._held = HeldObjects(
            kind.resource, on_change=on_change, transform=transform, indexes=indexes or {}
        )
        self._clock = clock
        self._heard = self._known = clock()
        self._backoff = Backoff(most_seconds=retry_most_seconds, source=source or random.Random())
        self._refusals = 0
        self._answered = asyncio.Event()
        self._spoken = asyncio.Event()
        self._watch_failed = False

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Object]:
        return iter(self._held)

    def keys(self) -> KeysView[Key]:
        """The keys of all objects."""
        return self._held.keys()

    def get(self, namespace: str, name: str) -> Object | None:
        """The object, or None. Not a copy: leave it as it is."""
        return self._held.get((namespace, name))

    def find(self, index: str, value: Hashable) -> list[Object]:
        """The objects that an index has under a value."""
        return self._held.find(index, value)

    @property
    def odd(self) -> int:
        """Changes that could not be taken in or told; each was logged."""
        return self._held.odd

    @property
    def age_seconds(self) -> float:
        """Seconds since the server last said anything; it does so about once a minute."""
        return self._clock() - self._heard

    @property
    def stale_seconds(self) -> float:
        """Seconds since the state was last known to be the server's; a refusal tells nothing."""
        return self._clock() - self._known

    @property
    def refused(self) -> str:
        """Why the server does not give the objects, though it is there; empty where it does."""
        return "" if self.refusal is None else str(self.refusal)

    async def answered(self) -> None:
        """Wait until the state is known: listed once, or the kind is not there."""
        await self._answered.wait()

    async def answered_or_refused(self) -> None:
        """Wait as :meth:`answered` does, but no longer than until the server refuses.

        Raises:
            KubeError: the refusal.
        """
        await self._spoken.wait()
        if not self._answered.is_set() and self.refusal is not None:
            raise self.refusal

    def take(self, obj: Object) -> None:
        """Hold an object that a write has just returned, before the watch tells it."""
        self._take(key_of(obj), obj)

    def drop(self, namespace: str, name: str, *, uid: str) -> None:
        """Forget an object that has just been deleted for good."""
        held = self._held.get((namespace, name))
        if held is not None and held["metadata"].get("uid") == uid:
            self._held.remove((namespace, name))

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
                version, self._watch_failed = None, True
                # A server that answers every watch so must not be asked in a tight loop.
                await asyncio.sleep(self._backoff.next_seconds())
            except KindNotServed as error:
                version = None
                self._not_served(error)
                await asyncio.sleep(self._backoff.next_seconds())
            except KubeError as error:
                self._watch_failed = version is not None
                self._failed(error)
                if refuses := _refuses(error):
                    self._refuse(error)
                if refuses or error.status >= 500 or isinstance(error, Garbled):
                    # The version may be what it does not take: the server may have come back with
                    # another history (a restored backup).
                    version = None
                await self._wait(error)
            except Exception:
                # What nobody has thought of must not end the watch, and with it the process.
                log.exception("watch failed; all is listed again", kind=self.kind.resource)
                version = None
                await asyncio.sleep(self._backoff.next_seconds())

    async def _list(self) -> str:
        items, version = await self._kube.list(
            self.kind,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        self._hear(watching=False)
        if self.served is False:
            log.info("kind is served now", kind=self.kind.resource)
        changed, self.served = self.served is not True, True
        listed = {key_of(obj): obj for obj in items}
        for key in self._held.keys() - listed.keys():
            self._held.remove(key)
        for key, obj in listed.items():
            held = self._held.get(key)
            if held is None or version_of(held) != version_of(obj):
                self._held.put(key, obj)
        self._answer()
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
                self._hear(watching=True)
                if event == "DELETED":
                    self._deleted(key_of(obj), obj)
                elif event != "BOOKMARK":
                    self._take(key_of(obj), obj)
                version = version_of(obj)
        except KubeError as error:
            if isinstance(error, Gone | KindNotServed | Garbled) or error.status >= 400:
                raise
            # The connection broke: what came until then holds, and the rest can be asked for.
            self._failed(error)
            await self._wait(error)
        else:
            self._hear(watching=True)
            # An orderly end. A server that goes down ends all watches so, at once.
            await asyncio.sleep(self._backoff.jitter * self._backoff.source.random())
        finally:
            await events.aclose()
        return version

    def _hear(self, *, watching: bool) -> None:
        """The server has given objects, or, with ``watching``, a watch of them."""
        self._heard = self._known = self._clock()
        self._refusals = 0
        if watching:
            self._watch_failed = False
        if not self._watch_failed:
            self._backoff.reset()
        elif self.refusal is not None:
            # It lists, and refuses the watch: at each list the state is known.
            return
        self.refusal = None
        if self.last_error:
            log.info("watch is back", kind=self.kind.resource)
            self.last_error = ""

    async def _wait(self, error: KubeError) -> None:
        least_seconds = min(error.retry_after_seconds, _MOST_RETRY_AFTER_SECONDS)
        await asyncio.sleep(self._backoff.next_seconds(least_seconds))

    def _answer(self) -> None:
        self._answered.set()
        self._spoken.set()

    def _failed(self, error: KubeError) -> None:
        if error.status or isinstance(error, Garbled):
            self._heard = self._clock()
        if not self.last_error:
            log.warning("watch is away; the last state stays", cause=str(error))
        self.last_error = str(error)

    def _refuse(self, error: KubeError) -> None:
        known, self.refusal = self.refusal, error
        self._spoken.set()
        if known is None or (known.status, known.reason) != (error.status, error.reason):
            log.error(
                "the API server refuses this; the last state stays, and it is asked again",
                kind=self.kind.resource,
                cause=str(error),
                next_step=self._next_step(error),
            )

    def _next_step(self, error: KubeError) -> str:
        where = f"in the namespace {self._namespace}" if self._namespace else "in all namespaces"
        if isinstance(error, Forbidden):
            return f"let this account list and watch {self.kind.resource} {where}"
        selectors = " ".join(filter(None, (self._label_selector, self._field_selector)))
        return (
            f"see whether this server takes the selector {selectors!r}"
            if selectors
            else f"see what `kubectl get --raw '{self.kind.path(self._namespace)}'` says"
        )

    def _not_served(self, error: KubeError) -> None:
        self._heard = self._known = self._clock()
        self._refusals += 1
        if self.served and self._refusals < _NOT_SERVED_TIMES:
            return
        changed, self.served = self.served is not False, False
        if changed:
            log.warning("kind is not served; waiting for its CRD", kind=self.kind.resource)
        self.last_error = str(error)
        for key in list(self._held.keys()):
            self._held.remove(key)
        self._answer()
        if changed:
            self._on_served(False)

    def _take(self, key: Key, obj: Object) -> None:
        held = self._held.get(key)
        if held is not None and is_older_or_same(obj, held):
            return
        self._held.put(key, obj)

    def _deleted(self, key: Key, obj: Object) -> None:
        held = self._held.get(key)
        # Its namesake, made since then, may be known already from the write that made it.
        if held is not None and uid_of(held) == uid_of(obj):
            self._held.remove(key)


def _refuses(error: KubeError) -> bool:
    """Whether the same question would get the same answer until somebody changes something."""
    return 400 <= error.status < 500 and not isinstance(error, Unavailable)
