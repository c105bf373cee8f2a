from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pointsman_operator.merge import merge_pod_spec

BASE: dict[str, Any] = {
    "containers": [
        {
            "name": "engine",
            "image": "engine:1",
            "env": [{"name": "A", "value": "1"}, {"name": "S", "valueFrom": {"x": 1}}],
            "volumeMounts": [{"name": "code", "mountPath": "/code"}],
            "resources": {"requests": {"cpu": "1"}},
        }
    ],
    "volumes": [{"name": "code", "emptyDir": {}}],
    "terminationGracePeriodSeconds": 90,
}


def engine(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["containers"][0]
    return found


def test_the_container_of_the_same_name_is_merged_and_stays_first() -> None:
    patch = {"containers": [{"name": "side"}, {"name": "engine", "workingDir": "/w"}]}

    merged = merge_pod_spec(BASE, patch)

    assert ["engine", "side"] == [item["name"] for item in merged["containers"]]
    assert ("engine:1", "/w") == (engine(merged)["image"], engine(merged)["workingDir"])


def test_variables_are_merged_by_name() -> None:
    patch = {
        "containers": [{"name": "engine", "env": [{"name": "A", "value": "2"}, {"name": "B"}]}]
    }

    assert ["A", "S", "B"] == [item["name"] for item in engine(merge_pod_spec(BASE, patch))["env"]]
    assert "2" == engine(merge_pod_spec(BASE, patch))["env"][0]["value"]


def test_a_variable_with_a_value_no_longer_comes_from_a_secret() -> None:
    patch = {"containers": [{"name": "engine", "env": [{"name": "S", "value": "plain"}]}]}

    assert {"name": "S", "value": "plain"} == engine(merge_pod_spec(BASE, patch))["env"][1]


def test_mounts_are_merged_by_their_path_and_volumes_by_their_name() -> None:
    patch = {
        "containers": [
            {"name": "engine", "volumeMounts": [{"name": "code", "mountPath": "/other"}]}
        ],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }

    merged = merge_pod_spec(BASE, patch)

    assert ["/code", "/other"] == [m["mountPath"] for m in engine(merged)["volumeMounts"]]
    assert ["code", "data"] == [volume["name"] for volume in merged["volumes"]]


def test_a_null_takes_a_field_out() -> None:
    merged = merge_pod_spec(BASE, {"terminationGracePeriodSeconds": None, "nodeSelector": None})

    assert {"containers", "volumes"} == set(merged)


def test_other_lists_are_replaced() -> None:
    base = {"tolerations": [{"key": "a"}]}

    assert {"tolerations": [{"key": "b"}]} == merge_pod_spec(base, {"tolerations": [{"key": "b"}]})


names = st.lists(st.sampled_from("abcd"), unique=True, max_size=4)


@given(base=names, patch=names)
def test_each_name_is_there_once_and_those_of_the_base_come_first(
    base: list[str], patch: list[str]
) -> None:
    merged = merge_pod_spec(
        {"volumes": [{"name": name} for name in base]},
        {"volumes": [{"name": name, "emptyDir": {}} for name in patch]},
    )

    assert [*base, *(name for name in patch if name not in base)] == [
        volume["name"] for volume in merged["volumes"]
    ]


@given(patch=names)
def test_merging_twice_is_merging_once(patch: list[str]) -> None:
    spec = {"volumes": [{"name": name, "emptyDir": {}} for name in patch]}

    once = merge_pod_spec(BASE, spec)

    assert once == merge_pod_spec(once, spec)
