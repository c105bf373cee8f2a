from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pointsman_api.route_table import (
    PoolEntry,
    Pricing,
    Route,
    RouteTable,
    Rule,
    RuleMatch,
    dump_route_table,
    load_route_table,
)

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


@pytest.mark.pain_17
def test_digest_changes_when_anything_changes() -> None:
    rule = Rule(name="default", targets=())
    table = RouteTable(routes={"a": Route(policy="p", rules=(rule,))})
    other = RouteTable(
        routes={"a": Route(policy="p", rules=(replace(rule, name="other"),))},
    )
    assert table.digest() != other.digest()


@pytest.mark.parametrize("document", ["", "[]", '{"pools": 1}', '{"pools": {"a": {"name": "a"}}}'])
def test_load_refuses_a_document_when_it_is_no_table(document: str) -> None:
    with pytest.raises(ValidationError):
        load_route_table(document)
