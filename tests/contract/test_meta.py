from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pointsman_api.meta import (
    Amount,
    Condition,
    Duration,
    Fraction,
    LabelSelector,
    ObjectMeta,
    parse_duration,
)
from pointsman_api.modelpool import ModelPool, SurgeLimit
from tests.contract.samples import pool, pool_document


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(30.0, "30s"), (5400.0, "1h30m"), (0.5, "500ms"), (0.0, "0s"), (3661.001, "1h1m1s1ms")],
)
def test_parse_duration_adds_its_parts_when_it_has_some(seconds: float, text: str) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
    assert Duration(text).seconds == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "-1s", "1.5s", "1d", "1s2s3s4s5s", "1 s", "1s\n", "٣s"])
def test_parse_duration_refuses_a_text_when_it_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as"):
        parse_duration(text)
    with pytest.raises(ValueError, match="is not a duration such as"):
        Duration(text)


@given(st.integers(0, 99999), st.sampled_from(["h", "m", "s", "ms"]))
def test_duration_keeps_its_text_when_parsed(count: int, unit: str) -> None:
    assert str(Duration(f"{count}{unit}")) == f"{count}{unit}"


@pytest.mark.parametrize("text", ["0.71", "1", "1.0", "0"])
def test_fraction_is_taken_when_it_is_from_0_to_1(text: str) -> None:
    assert Fraction(text).number == float(text)


@pytest.mark.parametrize("text", ["1.1", "-0.1", ".5", "1.0000000001", "0,5", "1e-1", ""])
def test_fraction_is_refused_when_it_is_outside_0_to_1_or_no_decimal(text: str) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Fraction(text)


@given(st.decimals(0, 999_999_999, places=6))
def test_amount_keeps_its_value_when_it_is_a_decimal(value: object) -> None:
    assert Amount(f"{value:f}").number == float(f"{value:f}")


@pytest.mark.parametrize(
    ("percent", "limit", "replicas"),
    [(25, "25%", 3), (50, 1, 2), (34, 1, 3), (100, 5, 2), (0, 0, 4), (100, 1, 0), (100, "100%", 9)],
)
def test_surge_limit_becomes_a_percentage_when_it_is_a_number_or_one(
    percent: int, limit: int | str, replicas: int
) -> None:
    rollout = pool(rollout={"maxSurge": limit}).spec.rollout
    assert rollout is not None
    assert rollout.max_surge.percent_of(replicas) == percent
    assert rollout.model_dump(mode="json")["maxSurge"] == limit


@pytest.mark.parametrize("limit", ["1", "101%", "-1%", -1, 1.5, True, "", "٣%"])
def test_surge_limit_is_refused_when_it_is_neither(limit: object) -> None:
    with pytest.raises(ValidationError, match='a percentage from "0%" to "100%"'):
        pool(rollout={"maxSurge": limit})


def test_surge_limit_is_all_replicas_when_nothing_is_said() -> None:
    rollout = pool(rollout={}).spec.rollout
    assert rollout is not None
    assert rollout.max_surge == SurgeLimit("100%")


@pytest.mark.parametrize(
    ("matches", "labels"),
    [
        (True, {"team": "a", "stage": "prod"}),
        (False, {"team": "b", "stage": "prod"}),
        (False, {"stage": "prod"}),
        (False, {"team": "a", "stage": "test"}),
        (False, {"team": "a", "stage": "prod", "banned": ""}),
        (False, {"team": "a", "stage": "prod", "tier": "free"}),
        (True, {"team": "a", "stage": "prod", "tier": "paid"}),
    ],
)
def test_selector_matches_when_every_condition_holds(matches: bool, labels: dict[str, str]) -> None:
    selector = LabelSelector.model_validate(
        {
            "matchLabels": {"team": "a"},
            "matchExpressions": [
                {"key": "stage", "operator": "In", "values": ["prod", "canary"]},
                {"key": "banned", "operator": "DoesNotExist"},
                {"key": "team", "operator": "Exists"},
                {"key": "tier", "operator": "NotIn", "values": ["free"]},
            ],
        }
    )
    assert selector.matches(labels) is matches


def test_object_is_read_when_it_comes_from_the_api_server() -> None:
    document = pool_document()
    document["metadata"] |= {
        "uid": "1",
        "resourceVersion": "5",
        "generation": 2,
        "creationTimestamp": "2026-11-22T08:00:00Z",
        "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        "ownerReferences": [{"kind": "X", "name": "y", "controller": True}],
        "finalizers": ["pointsman.dev/drain"],
    }
    document["status"] = {
        "replicas": 1,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Ready",
                "message": "",
                "lastTransitionTime": "2026-11-22T08:00:00Z",
                "observedGeneration": 2,
            }
        ],
    }
    parsed = ModelPool.model_validate(document)
    assert parsed.metadata.generation == 2
    assert parsed.status is not None
    assert parsed.status.conditions[0] == Condition(
        type="Ready",
        status="True",
        reason="Ready",
        last_transition_time="2026-11-22T08:00:00Z",
        observed_generation=2,
    )


def test_key_has_the_namespace_when_it_is_not_default() -> None:
    assert ObjectMeta(name="a").key == "a"
    assert ObjectMeta(name="a", namespace="team").key == "team/a"
