from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman_api import generate
from tests.contract import structural
from tests.contract.api_server import defaulted, problems

CRDS = Path(__file__).resolve().parents[2] / "crds"
FILES = ("modelpools.yaml", "routepolicies.yaml")


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CRDS / name).read_text(encoding="utf-8"))
    return document


def version_of(name: str) -> dict[str, Any]:
    version: dict[str, Any] = load(name)["spec"]["versions"][0]
    return version


def schema_of(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = version_of(name)["schema"]["openAPIV3Schema"]
    return schema


def test_crds_equal_the_types_when_nothing_has_drifted() -> None:
    assert generate.drift(CRDS) == ""


def test_generate_writes_files_that_pass_its_check_when_the_folder_is_empty(
    tmp_path: Path,
) -> None:
    assert generate.main(["--folder", str(tmp_path)]) == 0
    assert generate.main(["--check", "--folder", str(tmp_path)]) == 0


def test_generate_exits_1_with_the_difference_when_a_file_has_drifted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate.main(["--folder", str(tmp_path)])
    path = tmp_path / FILES[0]
    path.write_text(path.read_text(encoding="utf-8").replace("maximum: 4096", "maximum: 4097"))
    assert generate.main(["--check", "--folder", str(tmp_path)]) == 1
    assert "maximum: 4097" in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", ["spec", "status"])
def test_schema_is_structural_and_bounded(name: str, part: str) -> None:
    assert list(structural.faults(schema_of(name)["properties"][part])) == []


def test_structural_checker_finds_faults_when_there_are_some() -> None:
    schema = {
        "type": "object",
        "properties": {
            "free": {"type": "string"},
            "many": {"type": "array", "items": {"$ref": "#/x"}},
            "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "wide": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 2**31},
            "wider": {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**63},
            "blurred": {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**62},
            "odd": {"type": "integer", "format": "int8", "minimum": 0, "maximum": 1},
            "started": {
                "type": "integer",
                "format": "int32",
                "minimum": 0,
                "maximum": 1,
                "default": -(2**40),
            },
        },
        "additionalProperties": {"type": "string", "maxLength": 1},
        "x-kubernetes-validations": [{"rule": "self.namespace == ''", "message": "no"}],
    }
    found = "\n".join(structural.faults(schema))
    for words in (
        "a string without maxLength",
        "a list without maxItems",
        "$ref",
        "anyOf outside",
        "exclude each other",
        "words of CEL",
        ".wide: maximum 2147483648 is no int32",
        ".wider: maximum 9223372036854775808 is no int64",
        ".blurred: maximum 4611686018427387904 is no exact number",
        ".odd: format 'int8'",
        ".started: default -1099511627776 is no int32",
    ):
        assert words in found


@pytest.mark.parametrize(
    ("value", "form", "taken"),
    [
        (2**31 - 1, "int32", True),
        (2**31, "int32", False),
        (-(2**31) - 1, "int32", False),
        (2**31, "int64", True),
        (2**63, "int64", False),
    ],
)
def test_number_is_refused_when_its_format_cannot_hold_it(
    value: int, form: str, taken: bool
) -> None:
    assert taken == (problems(value, {"type": "integer", "format": form}) == [])


@pytest.mark.parametrize("name", FILES)
def test_every_field_is_documented(name: str) -> None:
    schema = schema_of(name)["properties"]
    assert [
        path for part in ("spec", "status") for path in structural.undocumented(schema[part])
    ] == []


@pytest.mark.parametrize("name", FILES)
def test_rules_stay_within_the_cost_budget(name: str) -> None:
    # The API server estimates at most 10 million units for one rule over all its repetitions; the
    # dearest rule here compares 32 targets with each other, some 250 units a pair.
    for rule, repeats in structural.estimated_cost(schema_of(name)["properties"]["spec"]):
        units = 32 * 32 * 250 if "exists_one" in rule else 300
        assert repeats * units < 10_000_000, rule


@pytest.mark.parametrize("name", FILES)
def test_every_default_is_valid_under_its_own_schema(name: str) -> None:
    def check(schema: dict[str, Any]) -> None:
        if "default" in schema:
            assert problems(schema["default"], schema) == []
            # A partly given object gets the same defaults as one that is absent.
            if schema.get("type") == "object" and not schema.get("required"):
                assert defaulted({}, schema) == schema["default"]
        for child in schema.get("properties", {}).values():
            check(child)
        if "items" in schema:
            check(schema["items"])

    check(schema_of(name)["properties"]["spec"])


def test_names_columns_and_subresources_are_what_users_type() -> None:
    pools, policies = load(FILES[0])["spec"], load(FILES[1])["spec"]
    assert (pools["names"]["shortNames"], pools["names"]["categories"]) == (["mp"], ["pointsman"])
    assert (
        policies["names"]["shortNames"],
        policies["names"]["categories"],
    ) == (["rp"], ["pointsman"])
    version = version_of(FILES[0])
    assert [column["name"] for column in version["additionalPrinterColumns"]] == [
        "Ready",
        "Replicas",
        "Updated",
        "Model",
        "Reason",
        "Age",
    ]
    assert version["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    assert version_of(FILES[1])["subresources"] == {"status": {}}


@pytest.mark.parametrize("name", FILES)
def test_schema_leaves_room_for_the_object_when_stored(name: str) -> None:
    # An object is limited to 1.5 MB; a CRD beyond 1 MB could not be applied with annotations.
    assert len(json.dumps(load(name))) < 262_144
