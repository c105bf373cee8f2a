"""The objects that a mirror holds: found by key and by index, and every change told."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, KeysView, Mapping

import structlog

from pointsman_kube.identity import Key
from pointsman_kube.kinds import Object

log = structlog.get_logger(__name__)

OnChange = Callable[[Key, Object | None, Object | None], None]
"""Told the key, the object before (None: new) and after (None: deleted)."""


class HeldObjects:
    """Objects of one kind.

    One that cannot be taken in, or whose change cannot be told, is logged and keeps no other from
    it.

    Args:
        resource: for messages.
        on_change: told every change.
        transform: what to keep of an object; managedFields never stay.
        indexes: by name, functions from an object to the values under which it is found.
    """

    def __init__(
        self,
        resource: str,
        *,
        on_change: OnChange,
        transform: Callable[[Object], Object],
        indexes: Mapping[str, Callable[[Object], Iterable[Hashable]]],
    ) -> None:
        self.on_change = on_change
        self.odd = 0
        """Changes that could not be taken in or told."""
        self._resource = resource
        self._transform = transform
        self._indexes = dict(indexes)
        self._found: dict[str, dict[Hashable, dict[Key, None]]] = {name: {} for name in indexes}
        self._objects: dict[Key, Object] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        return iter(self._objects.values())

    def keys(self) -> KeysView[Key]:
        """The keys of all objects."""
        return self._objects.keys()

    def get(self, key: Key) -> Object | None:
        """The object, or None."""
        return self._objects.get(key)

    def find(self, index: str, value: Hashable) -> list[Object]:
        """The objects that an index has under a value."""
        return [self._objects[key] for key in self._found[index].get(value, ())]

    def put(self, key: Key, obj: Object) -> None:
        """Hold an object, in the place of what was there."""
        obj["metadata"].pop("managedFields", None)
        try:
            new = self._transform(obj)
            found = {name: list(values_of(new)) for name, values_of in self._indexes.items()}
        except Exception:
            self._note_odd(key)
            return
        old = self._objects.get(key)
        self._unindex(key, old)
        self._objects[key] = new
        for name, values in found.items():
            for value in values:
                self._found[name].setdefault(value, {})[key] = None
        self._tell(key, old, new)

    def remove(self, key: Key) -> None:
        """Forget an object that is held."""
        old = self._objects.pop(key)
        self._unindex(key, old)
        self._tell(key, old, None)

    def _tell(self, key: Key, old: Object | None, new: Object | None) -> None:
        try:
            self.on_change(key, old, new)
        except Exception:
            self._note_odd(key)

    def _note_odd(self, key: Key) -> None:
        self.odd += 1
        log.exception(
            "a change could not be taken in; the others go on",
            kind=self._resource,
            name="/".join(key),
        )

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
