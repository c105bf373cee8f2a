"""A route table as ConfigMaps, written by the operator and read by the gateways. Pure.

A ConfigMap holds 1 MiB at most, so a long table is spread over several, each with the hash and the
number of all: a reader takes a whole set or none, and half-way through a change it keeps the old.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pointsman_api.field_path import field_text
from pointsman_api.labels import (
    CONFIG_HASH_ANNOTATION,
    CONFIG_LABEL,
    GATEWAY_LABEL,
    ROUTES_CONFIG,
    SHARD_ANNOTATION,
    SHARDS_ANNOTATION,
    routes_name,
)
from pointsman_api.route_table import (
    RouteTable,
    digest_of,
    dump_route_table,
    load_readable,
    load_route_table,
)

SHARD_BYTES = 900_000
"""What one ConfigMap holds of a table; the rest of its 1 MiB is for its metadata."""

_KEY = "table.json"


class RouteConfigError(ValueError):
    """ConfigMaps that are no route table; says which and why."""


class IncompleteRouteConfigError(RouteConfigError):
    """Some of the ConfigMaps of a table are missing or of another version: more will come."""


def route_config_maps(
    table: RouteTable, *, gateway: str, namespace: str, shard_bytes: int = SHARD_BYTES
) -> tuple[dict[str, Any], ...]:
    """The ConfigMaps of one gateway's table, at least one.

    Args:
        gateway: the gateway's name.
        namespace: the gateway's.
        shard_bytes: the longest part, in bytes of UTF-8.
    """
    document = dump_route_table(table)
    parts, digest = tuple(_parts(document, shard_bytes)), digest_of(document)
    return tuple(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": routes_name(gateway, index),
                "namespace": namespace,
                "labels": {GATEWAY_LABEL: gateway, CONFIG_LABEL: ROUTES_CONFIG},
                "annotations": {
                    CONFIG_HASH_ANNOTATION: digest,
                    SHARD_ANNOTATION: str(index),
                    SHARDS_ANNOTATION: str(len(parts)),
                },
            },
            "data": {_KEY: part.decode()},
        }
        for index, part in enumerate(parts)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConfig:
    """What a whole set of ConfigMaps holds."""

    table: RouteTable
    config_hash: str
    """As whoever wrote it says: another version may dump the same table otherwise."""


def read_config(config_maps: Iterable[Mapping[str, Any]]) -> RouteConfig:
    """The table that ConfigMaps hold, and its hash.

    Args:
        config_maps: all of one gateway, in any order, also some that are left from before.

    Raises:
        IncompleteRouteConfigError: a part is missing or of another version.
        RouteConfigError: the parts are whole and no route table.
    """
    text, digest, name = _whole_text(config_maps)
    try:
        return RouteConfig(table=load_route_table(text), config_hash=digest)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = field_text(problem["loc"]) or "the document"
        raise RouteConfigError(
            f"{name}: the route table cannot be read, {where}: {problem['msg']}; the "
            "operator and the gateway must be of the same version"
        ) from error


def read_readable(config_maps: Iterable[Mapping[str, Any]]) -> RouteTable:
    """The pools and routes that this version can read of the table that ConfigMaps hold.

    Raises:
        RouteConfigError: as :func:`read_config`, but not for single pools and routes.
    """
    text, _, name = _whole_text(config_maps)
    try:
        return load_readable(text)
    except ValueError as error:
        raise RouteConfigError(f"{name}: the route table cannot be read: {error}") from error


def _whole_text(config_maps: Iterable[Mapping[str, Any]]) -> tuple[str, str, str]:
    """The text that a whole set of ConfigMaps holds, its hash, and the name of the first."""
    shards = {_annotation(item, SHARD_ANNOTATION): item for item in config_maps}
    first = shards.get("0")
    if first is None:
        raise IncompleteRouteConfigError("the first ConfigMap of the route table is not there")
    digest = _annotation(first, CONFIG_HASH_ANNOTATION)
    count = _annotation(first, SHARDS_ANNOTATION)
    if not count.isdecimal() or not 1 <= int(count) <= 1000:
        raise RouteConfigError(
            f"{_name(first)}: the annotation {SHARDS_ANNOTATION} is {count!r}; it must be the "
            "number of ConfigMaps, from 1 to 1000"
        )
    text = ""
    for index in range(int(count)):
        shard = shards.get(str(index))
        if shard is None or _annotation(shard, CONFIG_HASH_ANNOTATION) != digest:
            raise IncompleteRouteConfigError(
                f"part {index} of {count} of the route table {digest} is not there yet"
            )
        part = (shard.get("data") or {}).get(_KEY)
        if not isinstance(part, str):
            raise RouteConfigError(f"{_name(shard)} has no {_KEY}; the operator writes it")
        text += part
    # Of the text: another version may read it otherwise, and knows less or more fields.
    found = hashlib.sha256(text.encode()).hexdigest()[: len(digest)]
    if not digest or found != digest:
        raise RouteConfigError(
            f"{_name(first)}: the route table has the hash {found} and should have {digest!r}; "
            "somebody changed the ConfigMap, and the operator writes it anew"
        )
    return text, digest, _name(first)


def _parts(document: bytes, limit: int) -> Iterator[bytes]:
    start = 0
    while start == 0 or start < len(document):
        end = min(start + limit, len(document))
        # Not within a character.
        while end < len(document) and document[end] & 0xC0 == 0x80:
            end -= 1
        yield document[start:end]
        start = end


def _annotation(item: Mapping[str, Any], name: str) -> str:
    return str((item.get("metadata", {}).get("annotations") or {}).get(name, ""))


def _name(item: Mapping[str, Any]) -> str:
    return f"ConfigMap {item.get('metadata', {}).get('name', '?')}"
