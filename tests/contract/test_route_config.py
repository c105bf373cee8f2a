"""Route tables as ConfigMaps, there and back."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest
from pydantic import TypeAdapter

from pointsman_api.compile import compile_route_table
from pointsman_api.modelpool import ModelPool
from pointsman_api.route_config import (
    IncompleteRouteConfigError,
    RouteConfigError,
    read_config,
    read_readable,
    route_config_maps,
)
from pointsman_api.route_table import RouteTable
from tests.contract.samples import pool_document

ConfigMaps = list[dict[str, Any]]


def table_of(pools: int, name: str = "pool") -> RouteTable:
    documents = [pool_document(f"{name}-{number}") for number in range(pools)]
    return compile_route_table([ModelPool.model_validate(item) for item in documents], []).table


def config_maps(table: RouteTable, shard_bytes: int = 900_000) -> ConfigMaps:
    return list(
        route_config_maps(table, gateway="main", namespace="system", shard_bytes=shard_bytes)
    )


@pytest.mark.parametrize("shard_bytes", [900_000, 1000, 333])
def test_table_is_the_same_when_it_was_spread_over_config_maps(shard_bytes: int) -> None:
    table = table_of(20)
    shards = config_maps(table, shard_bytes)
    assert table == read_config(reversed(shards)).table
    assert (len(shards) > 1) == (shard_bytes < 900_000)
    assert all(len(item["data"]["table.json"].encode()) <= shard_bytes for item in shards)


def test_character_is_not_cut_when_a_part_ends_in_it() -> None:
    pool = ModelPool.model_validate(pool_document("pool"))
    table = compile_route_table([pool], []).table
    for character in "é€𐍈":
        named = RouteTable(pools=table.pools, routes={character * 50: table.routes["pool"]})
        assert named == read_config(config_maps(named, 64)).table


def test_config_map_is_there_when_the_table_is_empty() -> None:
    (shard,) = config_maps(RouteTable())
    assert "pointsman-main-routes-0" == shard["metadata"]["name"]
    assert RouteTable() == read_config([shard]).table


@pytest.mark.parametrize("gone", [0, 1])
def test_set_is_incomplete_when_a_part_is_missing(gone: int) -> None:
    shards = config_maps(table_of(5), 900)
    del shards[gone]
    with pytest.raises(IncompleteRouteConfigError):
        read_config(shards)


def test_set_is_incomplete_when_parts_are_of_two_versions() -> None:
    old, new = config_maps(table_of(5), 900), config_maps(table_of(5, "other"), 900)
    with pytest.raises(IncompleteRouteConfigError, match="part 1 of"):
        read_config([new[0], *old[1:]])


def test_longer_set_of_before_is_passed_over_when_the_new_one_is_whole() -> None:
    old, new = config_maps(table_of(9), 500), config_maps(table_of(2, "b"), 900_000)
    assert table_of(2, "b") == read_config([*new, *old[1:]]).table


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("data", "table.json"), '{"pools": 1}', "has the hash"),
        (("data", "table.json"), "{}", "has the hash"),
        (("data",), None, r"has no table\.json"),
        (("metadata", "annotations", "pointsman.dev/shards"), "many", "is 'many'"),
        (("metadata", "annotations", "pointsman.dev/shards"), "1000000000", "from 1 to 1000"),
    ],
)
def test_set_is_refused_when_somebody_changed_it(
    path: tuple[str, ...], value: object, message: str
) -> None:
    (shard,) = copy.deepcopy(config_maps(table_of(1)))
    node = shard
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(RouteConfigError, match=message) as caught:
        read_config([shard])
    assert not isinstance(caught.value, IncompleteRouteConfigError)


def test_set_is_refused_when_it_is_no_table_of_this_version() -> None:
    (shard,) = copy.deepcopy(config_maps(table_of(1)))
    text = shard["data"]["table.json"] = '{"pools": 1}'
    annotations = shard["metadata"]["annotations"]
    annotations["pointsman.dev/config-hash"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    with pytest.raises(RouteConfigError, match="cannot be read, pools"):
        read_config([shard])
    with pytest.raises(RouteConfigError, match="routes-0: the route table cannot be read: pools"):
        read_readable([shard])


def test_the_rest_is_read_when_one_pool_is_of_a_later_version() -> None:
    (shard,) = copy.deepcopy(config_maps(table_of(2)))
    text = shard["data"]["table.json"].replace("RayServe", "OfALaterVersion", 1)
    shard["data"]["table.json"] = text
    annotations = shard["metadata"]["annotations"]
    annotations["pointsman.dev/config-hash"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    with pytest.raises(RouteConfigError):
        read_config([shard])
    assert {"pool-1"} == set(read_readable([shard]).pools)


def test_table_is_taken_when_a_newer_operator_says_more() -> None:
    (shard,) = copy.deepcopy(config_maps(table_of(1)))
    text = shard["data"]["table.json"].replace('{"pools"', '{"later":1,"pools"', 1)
    assert text != shard["data"]["table.json"]
    shard["data"]["table.json"] = text
    annotations = shard["metadata"]["annotations"]
    annotations["pointsman.dev/config-hash"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert table_of(1) == read_config([shard]).table


def test_hash_is_that_of_the_writer_when_it_dumps_the_table_otherwise() -> None:
    table = table_of(2)
    (shard,) = copy.deepcopy(config_maps(table))
    text = shard["data"]["table.json"] = TypeAdapter(RouteTable).dump_json(table).decode()
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    shard["metadata"]["annotations"]["pointsman.dev/config-hash"] = digest
    config = read_config([shard])
    assert (table, digest) == (config.table, config.config_hash)
    assert digest != table.digest()
