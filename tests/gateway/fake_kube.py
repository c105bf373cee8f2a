"""The API server as the gateway's mirrors see it: objects in memory, lists and watches."""

from __future__ import annotations

import asyncio
import base64
import copy
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsman_api.endpoint_slices import PoolEndpoints, encode_slices
from pointsman_api.labels import credentials_name
from pointsman_api.route_config import route_config_maps
from pointsman_api.route_table import RouteTable
from pointsman_kube.errors import Gone, Unavailable
from pointsman_kube.kinds import Kind, kind_of

Object = dict[str, Any]
NAMESPACE = "system"


@dataclass
class FakeKube:
    """Lists and watches; ``away`` and ``forget`` make the gaps."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    away: bool = False
    _versions: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)
    _version: int = 0
    _oldest: int = 0
    _history: list[tuple[int, str, Object]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    # What tests do.

    def put(self, *objects: Mapping[str, Any]) -> None:
        for item in objects:
            stored = copy.deepcopy(dict(item))
            key = (stored["kind"], stored["metadata"]["name"])
            known = self.objects.get(key)
            uid = f"uid-{self._version}" if known is None else known["metadata"]["uid"]
            stored["metadata"]["uid"] = uid
            self.objects[key] = stored
            self._tell("ADDED" if known is None else "MODIFIED", stored)

    def put_table(self, table: RouteTable, *, shard_bytes: int = 900_000) -> None:
        self.put(
            *route_config_maps(
                table, gateway="default", namespace=NAMESPACE, shard_bytes=shard_bytes
            )
        )

    def put_endpoints(self, pool: PoolEndpoints) -> None:
        self.put(*encode_slices(pool, namespace=NAMESPACE))

    def empty_slices(self) -> None:
        """Say of every pool that has slices that it has no replica."""
        for item in list(self.objects.values()):
            if item["kind"] == "EndpointSlice":
                self.put(item | {"endpoints": []})

    def put_secret(self, **values: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        metadata = {"name": credentials_name("default"), "namespace": NAMESPACE}
        self.put({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})

    def remove(self, kind: str, part: str = "") -> None:
        """Delete all objects of a kind, whose names have that part."""
        for key in [key for key in self.objects if key[0] == kind and part in key[1]]:
            self._tell("DELETED", self.objects.pop(key))

    def leave(self) -> None:
        """The server goes, and what is watched breaks."""
        self.away = True
        self._wake()

    def come_back(self, *, forgetful: bool = True) -> None:
        """It is back; ``forgetful``: who goes on with an old watch gets 410 Gone."""
        self.away = False
        if forgetful:
            self._oldest = self._version

    # What a Mirror asks.

    async def list(
        self, kind: Kind, namespace: str | None, *, label_selector: str, field_selector: str
    ) -> tuple[list[Object], str]:
        self.calls["list", kind.resource] += 1
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("refused")
        found = [
            copy.deepcopy(item)
            for item in self.objects.values()
            if kind_of(item) == kind and _selected(item, label_selector, field_selector)
        ]
        assert all(item["metadata"]["namespace"] == namespace for item in found)
        return found, str(self._version)

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        resource_version: str,
        label_selector: str,
        field_selector: str,
    ) -> AsyncIterator[tuple[str, Object]]:
        self.calls["watch", kind.resource] += 1
        after = int(resource_version)
        while True:
            if self.away:
                raise Unavailable("broken")
            if after < self._oldest:
                raise Gone("too old", status=410)
            for version, event, item in [each for each in self._history if each[0] > after]:
                after = version
                if kind_of(item) == kind and _selected(item, label_selector, field_selector):
                    yield event, copy.deepcopy(item)
            news = self._news
            if not any(version > after for version, _, _ in self._history) and not self.away:
                await news.wait()

    def _tell(self, event: str, item: Object) -> None:
        self._version = self._versions()
        item["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, event, copy.deepcopy(item)))
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _selected(item: Object, label_selector: str, field_selector: str) -> bool:
    labels = item["metadata"].get("labels", {})
    wanted = [pair.partition("=") for pair in label_selector.split(",") if pair]
    name = field_selector.removeprefix("metadata.name=")
    return all(labels.get(key) == value for key, _, value in wanted) and (
        not name or item["metadata"]["name"] == name
    )
