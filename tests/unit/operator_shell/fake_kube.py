"""A Kubernetes API in memory, as far as elections and caches need one."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from pointsman_kube.errors import Conflict, NotFound, Unavailable
from pointsman_kube.kinds import Object, Ref, ref_of


class FakeKube:
    """get, create and replace with optimistic concurrency."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.calls: list[str] = []
        self.away = False
        self._version = 0

    async def get(self, ref: Ref) -> Object:
        self._called(f"get {ref}")
        # As on a network, others get on in the meantime.
        await asyncio.sleep(0)
        try:
            return copy.deepcopy(self.objects[str(ref)])
        except KeyError:
            raise NotFound("no", status=404) from None

    async def create(self, obj: dict[str, Any]) -> Object:
        ref = ref_of(obj)
        self._called(f"create {ref}")
        if str(ref) in self.objects:
            raise Conflict("there", status=409, reason="AlreadyExists")
        return self._store(ref, obj)

    async def replace(self, obj: dict[str, Any]) -> Object:
        ref = ref_of(obj)
        self._called(f"update {ref}")
        held = self.objects.get(str(ref))
        if held is None:
            raise NotFound("no", status=404)
        if held["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            raise Conflict("changed", status=409)
        return self._store(ref, obj)

    def _store(self, ref: Ref, obj: dict[str, Any]) -> Object:
        self._version += 1
        stored = copy.deepcopy(obj)
        stored["metadata"]["resourceVersion"] = str(self._version)
        self.objects[str(ref)] = stored
        return copy.deepcopy(stored)

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.away:
            raise Unavailable("away")
