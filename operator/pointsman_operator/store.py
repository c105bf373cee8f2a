"""What users want: the ModelPools and RoutePolicies, as the API told them last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from pointsman_api.modelpool import ModelPool
from pointsman_api.routepolicy import RoutePolicy
from pointsman_kube.kinds import MODEL_POOL, ROUTE_POLICY, Kind, Object

Key = tuple[str, str]
"""Namespace and name."""

Parsed = TypeVar("Parsed", bound=BaseModel)

_METADATA = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "labels",
        "annotations",
    }
)
"""What we read of metadata; fields of a later Kubernetes must not make a pool unreadable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An object came, changed or went."""

    kind: Kind
    key: Key
    old: Object | None
    new: Object | None

    @property
    def asks_for_more(self) -> bool:
        """Whether anything but the status changed."""
        if self.old is None or self.new is None:
            return True
        return _asked(self.old) != _asked(self.new)


@dataclass(slots=True)
class _Held(Generic[Parsed]):
    raw: Object
    parsed: Parsed | None = None
    problem: str = ""


@dataclass(slots=True)
class Table(Generic[Parsed]):
    """All objects of one kind. Parsed once for each version of them."""

    kind: Kind
    model: type[Parsed]
    on_change: Callable[[Change], None]
    _held: dict[Key, _Held[Parsed]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._held)

    def keys(self) -> tuple[Key, ...]:
        """The keys of all objects."""
        return tuple(self._held)

    def raw(self, key: Key) -> Object | None:
        """The object as the API sent it."""
        held = self._held.get(key)
        return None if held is None else held.raw

    def get(self, key: Key) -> Parsed | None:
        """The object; None where it does not exist or cannot be read."""
        held = self._held.get(key)
        return None if held is None else self._parse(held)

    def problem(self, key: Key) -> str:
        """Why the object cannot be read; empty where it can."""
        held = self._held.get(key)
        if held is None:
            return ""
        self._parse(held)
        return held.problem

    def all(self) -> list[Parsed]:
        """All objects that can be read."""
        found = (self._parse(held) for held in self._held.values())
        return [item for item in found if item is not None]

    def versions(self) -> dict[Key, tuple[str, str]]:
        """uid and resource version of every object."""
        return {key: _identity(held.raw) for key, held in self._held.items()}

    def take(self, obj: Object) -> None:
        """The API told of this object, or a write of ours returned it."""
        metadata = obj["metadata"]
        key = (str(metadata.get("namespace") or ""), str(metadata["name"]))
        held = self._held.get(key)
        if held is not None and _is_older_or_same(obj, held.raw):
            return
        kept = {name: value for name, value in metadata.items() if name in _METADATA}
        new = {**obj, "metadata": kept}
        self._held[key] = _Held(new)
        self.on_change(
            Change(kind=self.kind, key=key, old=None if held is None else held.raw, new=new)
        )

    def remove(self, key: Key, *, uid: str) -> None:
        """The object with this uid is gone; a namesake that came since stays."""
        held = self._held.get(key)
        if held is None or _identity(held.raw)[0] != uid:
            return
        del self._held[key]
        self.on_change(Change(kind=self.kind, key=key, old=held.raw, new=None))

    def _parse(self, held: _Held[Parsed]) -> Parsed | None:
        if held.parsed is None and not held.problem:
            try:
                held.parsed = self.model.model_validate(held.raw)
            except ValidationError as error:
                held.problem = _first_problem(error)
        return held.parsed


class Store:
    """Both kinds that users write.

    Args:
        on_change: called for every change, in the event loop; it must not block.
    """

    def __init__(self, on_change: Callable[[Change], None] = lambda change: None) -> None:
        self.pools: Table[ModelPool] = Table(MODEL_POOL, ModelPool, on_change)
        self.policies: Table[RoutePolicy] = Table(ROUTE_POLICY, RoutePolicy, on_change)

    def tables(self) -> Iterable[Table[Any]]:
        """One for each kind."""
        return (self.pools, self.policies)


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    return f"{path}: {first['msg']}"


def _identity(obj: Mapping[str, Any]) -> tuple[str, str]:
    metadata = obj["metadata"]
    return str(metadata.get("uid") or ""), str(metadata.get("resourceVersion") or "")


def _asked(obj: Mapping[str, Any]) -> tuple[object, ...]:
    metadata = obj["metadata"]
    return (
        metadata.get("uid"),
        metadata.get("generation"),
        metadata.get("deletionTimestamp"),
        metadata.get("annotations"),
        metadata.get("labels"),
    )


def _is_older_or_same(obj: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    (new_uid, new), (old_uid, old) = _identity(obj), _identity(held)
    if new_uid != old_uid:
        return False
    return new == old or (new.isdigit() and old.isdigit() and int(new) < int(old))
