"""What the chart holds of others' making is what they make now."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.tools import generate
from charts.tools.crd_templates import crd_template
from charts.tools.values_schema import UndescribedValueError, values_schema
from tests.chart.chart import render

CRDS = generate.CRDS


@pytest.fixture
def chart_copy(tmp_path: Path) -> Path:
    return shutil.copytree(generate.CHART, tmp_path / "chart")


def test_generated_files_equal_their_sources_when_nothing_has_drifted() -> None:
    assert generate.drift() == ""


def test_drift_shows_the_difference_when_a_value_has_been_added(chart_copy: Path) -> None:
    with (chart_copy / "values.yaml").open("a", encoding="utf-8") as file:
        file.write("\n# Whether it is new.\nnewValue: true\n")
    assert '+    "newValue": {' in generate.drift(chart_copy)


def test_drift_shows_the_file_when_a_crd_has_gone(chart_copy: Path, tmp_path: Path) -> None:
    crds = tmp_path / "crds"
    crds.mkdir()
    shutil.copy(CRDS / "modelpools.yaml", crds)
    assert "--- charts/pointsman/templates/crds/routepolicies.yaml" in generate.drift(
        chart_copy, crds
    )


@pytest.mark.parametrize("name", ["modelpools.yaml", "routepolicies.yaml"])
def test_rendered_crd_is_the_canonical_one_when_installed(name: str) -> None:
    canonical = yaml.safe_load((CRDS / name).read_text(encoding="utf-8"))
    (rendered,) = [
        each
        for each in render()
        if each["kind"] == "CustomResourceDefinition"
        and each["metadata"]["name"] == canonical["metadata"]["name"]
    ]
    assert canonical["spec"] == rendered["spec"]


def _crd_annotations(values: dict[str, Any]) -> list[dict[str, str]]:
    return [
        each["metadata"].get("annotations", {})
        for each in render(values)
        if each["kind"] == "CustomResourceDefinition"
    ]


def test_crds_outlive_the_release_when_keep_is_on() -> None:
    assert [{"helm.sh/resource-policy": "keep"}] * 2 == _crd_annotations({})


def test_crds_go_with_the_release_when_keep_is_off() -> None:
    assert [{}, {}] == _crd_annotations({"crds": {"keep": False}})


def test_crds_are_left_out_when_not_enabled() -> None:
    assert [] == _crd_annotations({"crds": {"enabled": False}})


def test_crd_template_is_refused_when_helm_would_read_a_part_as_its_own() -> None:
    with pytest.raises(ValueError, match="would take for a template"):
        crd_template("metadata:\n  name: x\nspec:\n  text: '{{ x }}'\n")


def test_crd_template_is_refused_when_metadata_holds_more() -> None:
    with pytest.raises(ValueError, match="metadata is not 'name' alone"):
        crd_template("metadata:\n  name: x\n  labels: {}\nspec: {}\n")


def test_values_schema_is_refused_when_a_value_has_no_comment() -> None:
    text = (generate.CHART / "values.yaml").read_text(encoding="utf-8") + "\nsilent: true\n"
    with pytest.raises(UndescribedValueError, match="silent has no comment"):
        values_schema(text)


def test_values_schema_is_refused_when_a_described_value_has_gone() -> None:
    with pytest.raises(UndescribedValueError, match=r"crds|gateway\.name"):
        values_schema("# Alone.\ntest:\n  # How long.\n  timeoutSeconds: 1\n")
