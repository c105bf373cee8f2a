from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_operator.drift import needs_apply
from pointsman_operator.objects import canonical, with_hash

WANTED = with_hash(
    {
        "kind": "Thing",
        "metadata": {"name": "a", "labels": {"app": "x"}},
        "spec": {"list": [{"name": "one", "value": 1}], "flag": False, "empty": {}},
    }
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_an_object_that_is_not_there_is_applied() -> None:
    assert needs_apply(None, WANTED)


def test_nothing_is_applied_when_the_server_only_added_defaults() -> None:
    live: dict[str, Any] = copy.deepcopy(WANTED)
    live["metadata"] |= {"resourceVersion": "7", "managedFields": []}
    live["spec"]["list"][0]["policy"] = "Always"
    live["spec"]["more"] = 1

    assert not needs_apply(live, WANTED)


def test_nothing_is_applied_when_the_server_dropped_what_is_empty() -> None:
    live = copy.deepcopy(WANTED)
    del live["spec"]["empty"]

    assert not needs_apply(live, WANTED)


@pytest.mark.parametrize(
    "change",
    [
        {"flag": True},
        {"list": []},
        {"list": [{"name": "one", "value": 1}, {"name": "two"}]},
        {"list": [{"name": "one", "value": 2}]},
        {"list": "one"},
        {"flag": None},
    ],
)
def test_a_changed_field_is_put_back(change: dict[str, Any]) -> None:
    live = copy.deepcopy(WANTED)
    live["spec"] |= change

    assert needs_apply(live, WANTED)


@pytest.mark.pain_17
def test_a_field_that_is_wanted_no_more_is_noticed() -> None:
    fewer = copy.deepcopy(WANTED)
    del fewer["spec"]["flag"]

    assert needs_apply(WANTED, with_hash(fewer))


def test_a_label_that_was_taken_off_is_put_back() -> None:
    live = copy.deepcopy(WANTED)
    live["metadata"]["labels"] = {}

    assert needs_apply(live, WANTED)


@given(spec=values)
def test_what_was_just_applied_needs_nothing(spec: Any) -> None:
    wanted = with_hash({"kind": "Thing", "metadata": {"name": "a"}, "spec": spec})

    assert not needs_apply(copy.deepcopy(wanted), wanted)


@given(one=values, other=values)
def test_another_wish_is_always_noticed(one: Any, other: Any) -> None:
    applied, wanted = (
        with_hash({"kind": "Thing", "metadata": {"name": "a"}, "spec": spec})
        for spec in (one, other)
    )

    assert (canonical(one) != canonical(other)) == needs_apply(applied, wanted)


def test_the_hash_does_not_depend_on_an_earlier_one_nor_on_the_order_of_keys() -> None:
    turned = {key: WANTED[key] for key in reversed(WANTED)}

    assert WANTED["metadata"]["annotations"] == with_hash(turned)["metadata"]["annotations"]
