"""The API in memory with what the pool side needs of it beyond :class:`FakeKube`."""

from __future__ import annotations

import copy
from typing import Any

from pointsman_kube.errors import Conflict, KubeError, NotFound
from pointsman_kube.kinds import Kind, Object, Ref, ref_of
from tests.unit.operator_shell.fake_kube import FakeKube


class SmallApi(FakeKube):
    """Also applies, deletes, lists one by its name, reads logs and takes statuses."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, str] = {}
        self.refusal: KubeError | None = None

    async def apply(self, obj: dict[str, Any]) -> Object:
        ref = ref_of(obj)
        self._called(f"apply {ref}")
        if self.refusal is not None:
            raise self.refusal
        held = self.objects.get(str(ref), {"metadata": {"uid": f"uid-{len(self.objects)}"}})
        metadata = {**held["metadata"], **obj["metadata"]}
        return self._store(ref, {**held, **obj, "metadata": metadata})

    async def apply_status(self, obj: dict[str, Any]) -> Object:
        ref = ref_of(obj)
        self._called(f"status {ref}")
        if str(ref) not in self.objects:
            raise NotFound("no", status=404)
        return self._store(ref, {**self.objects[str(ref)], "status": obj["status"]})

    async def delete(self, ref: Ref, *, uid: str = "", propagation: str = "") -> None:
        self._called(f"delete {ref}")
        held = self.objects.get(str(ref))
        if held is None:
            return
        if uid and held["metadata"].get("uid") != uid:
            raise Conflict("another one", status=409)
        del self.objects[str(ref)]

    async def list(
        self, kind: Kind, namespace: str, *, field_selector: str
    ) -> tuple[list[Object], str]:
        name = field_selector.removeprefix("metadata.name=")
        ref = Ref(kind=kind, namespace=namespace, name=name)
        self._called(f"list {ref}")
        found = self.objects.get(str(ref))
        return ([] if found is None else [copy.deepcopy(found)]), "1"

    async def log(self, ref: Ref, *, container: str, previous: bool, lines: int) -> str:
        self._called(f"log {ref}")
        if ref.name not in self.logs:
            raise NotFound("no log", status=404)
        return self.logs[ref.name]

    def put(self, obj: dict[str, Any]) -> None:
        """Somebody else has made this, or changed it so."""
        self._store(ref_of(obj), obj)

    def take_away(self, ref: Ref) -> None:
        """Somebody else has deleted this."""
        del self.objects[str(ref)]
