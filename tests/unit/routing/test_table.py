from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_api.route_table import (
    HeaderMatch,
    HeaderMatchType,
    RouteTable,
    RuleMatch,
    Target,
)
from pointsman_serving.routing.table import CompiledTable, weighted_order
from tests.unit.routing.fleet import chat, pool_entry, table_of, text


def compiled(*matches: RuleMatch) -> CompiledTable:
    return CompiledTable(table_of(pool_entry(), matches=matches))


def regex(value: str) -> RuleMatch:
    match = HeaderMatch(name="x-user", value=value, type=HeaderMatchType.REGULAR_EXPRESSION)
    return RuleMatch(headers=(match,))


def test_rule_matches_everything_when_it_states_nothing() -> None:
    assert compiled().route(chat("x")) is not None


def test_no_route_is_found_when_the_model_is_unknown() -> None:
    assert compiled().route(chat("x", model="other")) is None


@pytest.mark.parametrize(
    ("headers", "matches"),
    [({"x-task": "code"}, True), ({"x-task": "Code"}, False), ({}, False)],
)
def test_header_must_be_equal_when_the_match_is_exact(
    headers: dict[str, str], matches: bool
) -> None:
    table = compiled(RuleMatch(headers=(HeaderMatch(name="x-task", value="code"),)))
    assert (table.route(chat("x", headers=headers)) is not None) is matches


@pytest.mark.parametrize(("value", "matches"), [("team-7", True), ("my team-7", False)])
def test_whole_value_must_match_when_the_match_is_an_expression(value: str, matches: bool) -> None:
    found = compiled(regex("team-[0-9]+")).route(chat("x", headers={"x-user": value}))
    assert (found is not None) is matches


@pytest.mark.timeout(5)
def test_matching_ends_when_the_expression_would_make_a_backtracking_engine_run_for_ever() -> None:
    headers = {"x-user": "a" * 5_000 + "b"}
    assert compiled(regex("(a+)+")).route(chat("x", headers=headers)) is None


def test_place_is_named_when_an_expression_is_not_valid() -> None:
    with pytest.raises(ValueError, match=r"model assistant, rule default: header x-user .*'\('"):
        compiled(regex("("))


def test_tokens_bound_a_rule_at_both_ends() -> None:
    table = compiled(RuleMatch(min_input_tokens=100, max_input_tokens=200))
    sizes = [bytes_ for bytes_ in (100, 600, 2_000) if table.route(chat(text("x", bytes_)))]
    assert sizes == [600]


def test_one_match_is_enough_but_all_of_it_must_hold() -> None:
    task = HeaderMatch(name="x-task", value="code")
    table = compiled(
        RuleMatch(headers=(task,), min_input_tokens=100), RuleMatch(max_input_tokens=9)
    )
    assert table.route(chat("hi")) is not None
    assert table.route(chat(text("x", 200), headers={"x-task": "code"})) is None
    assert table.route(chat(text("x", 600), headers={"x-task": "code"})) is not None


def test_first_places_follow_the_weights() -> None:
    targets = [Target(pool="a", weight=1), Target(pool="b", weight=9)]
    counts = Counter(weighted_order(targets, number)[0].pool for number in range(2_000))
    assert 140 <= counts["a"] <= 260


def test_target_is_left_out_when_its_weight_is_zero() -> None:
    assert weighted_order([Target(pool="a", weight=0)], 1) == []


@given(st.integers(0, 2**64 - 1), st.integers(1, 50), st.integers(1, 50))
def test_conversation_moves_only_to_the_target_whose_weight_grew(
    conversation: int, weight: int, more: int
) -> None:
    others = [Target(pool="b", weight=10), Target(pool="c", weight=20)]
    before = weighted_order([Target(pool="a", weight=weight), *others], conversation)[0]
    after = weighted_order([Target(pool="a", weight=weight + more), *others], conversation)[0]
    assert after.pool in {before.pool, "a"}


def test_empty_table_routes_nothing() -> None:
    assert CompiledTable(RouteTable()).route(chat("x")) is None
