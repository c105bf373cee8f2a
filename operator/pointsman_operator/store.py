"""What users want: the ModelPools and RoutePolicies, as the API told them last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from pointsman_api.field_path import field_text
from pointsman_api.modelpool import ModelPool, ModelPoolStatus
from pointsman_api.routepolicy import RoutePolicy, RoutePolicyStatus
from pointsman_kube.identity import Key, is_older_or_same, key_of, uid_of, version_of
from pointsman_kube.kinds import MODEL_POOL, ROUTE_POLICY, Kind, Object

__all__ = ["Change", "Key", "Store", "Table"]

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
"""What we read of metadata; the rest need not be kept."""


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
    good: Parsed | None = None
    """The same object as it was when it could be read last."""
    unchanged: bool = False
    """Only the status is another one than that of ``good``."""


@dataclass(slots=True)
class Table(Generic[Parsed]):
    """All objects of one kind. Parsed once for each version of them.

    Fields that this version of the operator does not know are passed over: the API server, which
    has the CRD, has refused those that nobody knows.
    """

    kind: Kind
    model: type[Parsed]
    status_model: type[BaseModel]
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

    def last_good(self, key: Key) -> Parsed | None:
        """The object, or as it was last while it cannot be read; None where it never could."""
        held = self._held.get(key)
        return None if held is None else self._parse(held) or held.good

    def problem(self, key: Key) -> str:
        """Why the object cannot be read; empty where it can."""
        held = self._held.get(key)
        if held is None:
            return ""
        self._parse(held)
        return held.problem

    def all(self) -> list[Parsed]:
        """All objects, those that cannot be read now as they were when they could."""
        found = (self._parse(held) or held.good for held in self._held.values())
        return [item for item in found if item is not None]

    def unreadable(self) -> list[Key]:
        """The keys of the objects that could never be read."""
        return [
            key
            for key, held in self._held.items()
            if self._parse(held) is None and held.good is None
        ]

    def versions(self) -> dict[Key, tuple[str, str]]:
        """uid and resource version of every object."""
        return {key: (uid_of(held.raw), version_of(held.raw)) for key, held in self._held.items()}

    def take(self, obj: Object) -> None:
        """The API told of this object, or a write of ours returned it."""
        key = key_of(obj)
        held = self._held.get(key)
        if held is not None and is_older_or_same(obj, held.raw):
            return
        kept = {name: value for name, value in obj["metadata"].items() if name in _METADATA}
        new = {**obj, "metadata": kept}
        if held is not None and uid_of(held.raw) == uid_of(new):
            good = held.parsed or held.good
            self._held[key] = _Held(
                new,
                good=good,
                unchanged=held.parsed is not None and _asked(held.raw) == _asked(new),
            )
        else:
            self._held[key] = _Held(new)
        self.on_change(
            Change(kind=self.kind, key=key, old=None if held is None else held.raw, new=new)
        )

    def remove(self, key: Key, *, uid: str) -> None:
        """The object with this uid is gone; a namesake that came since stays."""
        held = self._held.get(key)
        if held is None or uid_of(held.raw) != uid:
            return
        del self._held[key]
        self.on_change(Change(kind=self.kind, key=key, old=held.raw, new=None))

    def _parse(self, held: _Held[Parsed]) -> Parsed | None:
        if held.parsed is None and not held.problem:
            parsed = held.good if held.unchanged else None
            try:
                if parsed is None:
                    # Not the status: nothing in it may keep the object from being read.
                    wanted = {name: value for name, value in held.raw.items() if name != "status"}
                    parsed = self.model.model_validate(wanted, extra="ignore")
            except ValidationError as error:
                held.problem = _first_problem(error)
            else:
                status = read_status(self.status_model, held.raw.get("status"))
                held.parsed = parsed.model_copy(update={"status": status})
                held.good = None
        return held.parsed


class Store:
    """Both kinds that users write.

    Args:
        on_change: called for every change, in the event loop; it must not block.
    """

    def __init__(self, on_change: Callable[[Change], None] = lambda change: None) -> None:
        self.pools: Table[ModelPool] = Table(MODEL_POOL, ModelPool, ModelPoolStatus, on_change)
        self.policies: Table[RoutePolicy] = Table(
            ROUTE_POLICY, RoutePolicy, RoutePolicyStatus, on_change
        )

    def tables(self) -> Iterable[Table[Any]]:
        """One for each kind."""
        return (self.pools, self.policies)


def read_status(model: type[BaseModel], status: object) -> BaseModel | None:
    """As much of a status as can be read; None where there is none.

    It was written by us, or by another version of us: nothing in it may stop the object.
    """
    if not isinstance(status, Mapping):
        return None
    try:
        return model.model_validate(status, extra="ignore")
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
    kept = {name: value for name, value in status.items() if name not in wrong}
    try:
        return model.model_validate(kept, extra="ignore")
    except ValidationError:
        return None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{field_text(first['loc'])}: {first['msg']}"


def _asked(obj: Mapping[str, Any]) -> tuple[object, ...]:
    metadata = obj["metadata"]
    return (
        metadata.get("uid"),
        metadata.get("generation"),
        metadata.get("deletionTimestamp"),
        metadata.get("annotations"),
        metadata.get("labels"),
    )
