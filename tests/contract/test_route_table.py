from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pointsman_api.compile import compile_route_table
from pointsman_api.modelpool import ModelPool
from pointsman_api.route_table import (
    PoolEntry,
    Pricing,
    Route,
    RouteTable,
    Rule,
    RuleMatch,
    dump_route_table,
    load_readable,
    load_route_table,
)
from pointsman_api.routepolicy import RoutePolicy
from tests.contract.samples import RICH_POLICY, RICH_POOL, policy, pool

GOLDEN = Path(__file__).parent / "golden" / "route_table.json"
DEFAULTS = Path(__file__).parent / "golden" / "route_table_defaults.json"

_NAMES = st.text("abc-/", min_size=1, max_size=4)
_NUMBERS = st.floats(0, 1e9, allow_nan=False)
_POOLS = st.builds(
    PoolEntry,
    pricing=st.builds(Pricing, input_dollars=_NUMBERS, output_dollars=_NUMBERS),
    quality=st.dictionaries(_NAMES, st.floats(0, 1), max_size=2),
)
_RULES = st.builds(
    Rule,
    matches=st.lists(
        st.builds(RuleMatch, min_input_tokens=st.none() | st.integers(0, 9)), max_size=2
    ).map(tuple),
    targets=st.just(()),
)
_ROUTES = st.builds(Route, policy=_NAMES, rules=st.lists(_RULES, max_size=2).map(tuple))
_TABLES = st.builds(
    RouteTable,
    pools=st.dictionaries(_NAMES, _POOLS, max_size=2),
    routes=st.dictionaries(_NAMES, _ROUTES, max_size=2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_TABLES)
def test_table_is_the_same_when_dumped_and_loaded(table: RouteTable) -> None:
    assert load_route_table(dump_route_table(table)) == table
    assert load_route_table(dump_route_table(table)).digest() == table.digest()
    assert load_readable(dump_route_table(table)) == table


@pytest.mark.pain_17
def test_digest_changes_when_anything_changes() -> None:
    rule = Rule(name="default", targets=())
    table = RouteTable(routes={"a": Route(policy="p", rules=(rule,))})
    other = RouteTable(
        routes={"a": Route(policy="p", rules=(replace(rule, name="other"),))},
    )
    assert table.digest() != other.digest()


def test_table_says_only_what_is_not_at_its_default() -> None:
    """The wire format: gateways of other versions read and write the same text."""
    rich = compile_route_table(
        [ModelPool.model_validate(RICH_POOL), pool(), pool(namespace="other")],
        [RoutePolicy.model_validate(RICH_POLICY)],
        gateway="edge",
    ).table
    plain = compile_route_table([pool()], []).table
    assert (
        '{"pools":{"pool":{"name":"pool","served_model_name":"pool","backend":"RayServe",'
        '"engine":"Simulated"}},"routes":{"pool":{"policy":"pool:pool","rules":[{"name":"default",'
        '"targets":[{"pool":"pool"}]}]}}}'
    ) == dump_route_table(plain).decode()
    assert json.loads(GOLDEN.read_text()) == json.loads(dump_route_table(rich))
    assert load_route_table(GOLDEN.read_bytes()) == rich


def test_defaults_are_those_that_were_ever_written() -> None:
    """What is left out of a text means the same to every version: a default never changes."""
    text = '{"pools":{"a":{"name":"a","served_model_name":"a","backend":"External"}},"routes":'
    text += '{"a":{"policy":"p","rules":[{"name":"r","targets":[{"pool":"a"}]}]}}}'
    everything = TypeAdapter(RouteTable).dump_python(load_route_table(text), mode="json")
    assert json.loads(DEFAULTS.read_text()) == everything


def test_text_with_every_default_is_read_as_the_one_without() -> None:
    table = compile_route_table([pool()], [policy()]).table
    long = TypeAdapter(RouteTable).dump_json(table)
    assert table == load_route_table(long)
    assert len(dump_route_table(table)) < len(long) / 4


def test_only_what_this_version_knows_is_read_when_a_later_one_has_written_more() -> None:
    document = json.loads(GOLDEN.read_bytes())
    whole = load_readable(json.dumps(document))
    document["pools"]["rich"]["backend"] = "OfALaterVersion"
    document["routes"]["new"] = {"policy": "p", "rules": "of a later version"}

    found = load_readable(json.dumps(document))

    assert load_route_table(GOLDEN.read_bytes()) == whole
    assert {"pool": whole.pools["pool"]} == found.pools
    assert whole.routes == found.routes
    assert RouteTable() == load_readable("{}")


@pytest.mark.parametrize("document", ["", "[]", '{"pools": 1}', '{"routes": null}'])
def test_nothing_is_read_when_a_document_has_no_entries(document: str) -> None:
    with pytest.raises(ValueError, match=r"must be an object|Expecting value"):
        load_readable(document)


@pytest.mark.parametrize("document", ["", "[]", '{"pools": 1}', '{"pools": {"a": {"name": "a"}}}'])
def test_load_refuses_a_document_when_it_is_no_table(document: str) -> None:
    with pytest.raises(ValidationError):
        load_route_table(document)
