from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pointsman_api.labels import RESTARTED_AT_ANNOTATION
from pointsman_api.modelpool import SurgeLimit
from pointsman_operator.ray_service import render_spec
from pointsman_operator.revision import (
    Revision,
    decode_revision,
    encode_revision,
    revision_key,
    surplus_revisions,
    with_replicas,
)
from tests.unit.operator.scenes import SETTINGS, made_pool

POOL = made_pool()
SPEC = render_spec(POOL, SETTINGS)


def deployment(spec: dict[str, Any]) -> dict[str, Any]:
    config = yaml.safe_load(spec["serveConfigV2"])
    found: dict[str, Any] = config["applications"][0]["deployments"][0]
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"args": ["--vocabulary=9"]}},
        {"engine": {"image": "other"}},
        {"engine": {"env": [{"name": "A", "value": "1"}]}},
        {"ray_serve": {"template": {"spec": {"nodeSelector": {"gpu": "h100"}}}}},
        {"contextTokens": 4096},
        {"rollout": {"drainTimeout": "5s"}},
        {"annotations": {RESTARTED_AT_ANNOTATION: "now"}},
    ],
)
def test_the_key_changes_when_the_pods_would(change: dict[str, Any]) -> None:
    assert revision_key(POOL) != revision_key(made_pool(**change))


def test_the_key_is_the_same_when_a_default_is_written_out() -> None:
    written = made_pool(
        ray_serve={"parallelism": {"tensor": 1, "pipeline": 1, "data": 1, "expertParallel": False}},
        engine={"image": "", "args": [], "maxSequences": 64},
        rollout={"drainTimeout": "600s", "maxSurge": "100%"},
    )

    assert revision_key(POOL) == revision_key(written)


def test_a_stored_revision_reads_as_it_was_written() -> None:
    revision = Revision(name="chat-1", key="k", number=3, spec=SPEC)

    assert revision == decode_revision(encode_revision(POOL, revision))


@pytest.mark.parametrize(
    "data", [None, {}, {"key": "k", "rayServiceSpec": SPEC, "checksum": "0"}, {"key": "k"}]
)
def test_a_revision_that_somebody_changed_is_not_read(data: Any) -> None:
    assert None is decode_revision({"metadata": {"name": "x"}, "data": data})


def test_a_surge_of_one_replica_is_a_share_of_them_all() -> None:
    one = SurgeLimit("1")

    assert 100 == deployment(with_replicas(SPEC, 1, max_surge=one))["max_surge_percent"]
    assert 25 == deployment(with_replicas(SPEC, 4, max_surge=one))["max_surge_percent"]


def test_without_a_surge_a_share_goes_down_first() -> None:
    spec = with_replicas(SPEC, 4, max_surge=SurgeLimit("0"))

    assert 0.2 == deployment(spec)["rolling_update_percentage"]


@given(replicas=st.integers(1, 500))
def test_the_number_is_the_only_difference_between_two_sizes(replicas: int) -> None:
    spec = with_replicas(SPEC, replicas)

    assert replicas == deployment(spec)["num_replicas"]
    assert with_replicas(SPEC, 1) == with_replicas(spec, 1)


def test_the_stored_spec_itself_stays_as_it_is() -> None:
    before = repr(SPEC)

    with_replicas(SPEC, 9)

    assert before == repr(SPEC)


@given(order=st.permutations(range(6)), keep=st.sets(st.integers(0, 5), max_size=2))
def test_the_newest_three_stay_and_those_that_are_in_use(order: list[int], keep: set[int]) -> None:
    documents = [{"metadata": {"name": f"r{n}"}, "revision": n} for n in order]
    names = frozenset(f"r{n}" for n in keep)

    gone = surplus_revisions(documents, keep=names)

    left = [f"r{n}" for n in range(6) if f"r{n}" not in gone]
    others = [n for n in range(6) if n not in keep]
    assert 3 == len(left)
    assert {*names, *(f"r{n}" for n in others[len(others) - 3 + len(keep) :])} == set(left)
