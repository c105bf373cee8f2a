"""docs/install.md: what it tells people to type and apply is right."""

from __future__ import annotations

import itertools
import re
import shlex
from typing import Any

import kubernetes_validate
import pytest
import yaml

from charts.tools.generate import CHART
from tests.chart.chart import merged, nested, render

TEXT = (CHART.parents[1] / "docs" / "install.md").read_text(encoding="utf-8")
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def commands() -> list[list[str]]:
    """Every command of the guide, in words."""
    blocks = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix("$ ")) for line in lines]


HELM = [each for each in commands() if each[0] == "helm" and "--set" in each]


@pytest.mark.parametrize("words", HELM, ids=" ".join)
def test_values_in_the_guide_are_taken_by_the_chart(words: list[str]) -> None:
    values: dict[str, Any] = {}
    for option, setting in itertools.pairwise(words):
        if option == "--set":
            name, _, value = setting.partition("=")
            listed = value[1:-1].split(",") if value.startswith("{") else yaml.safe_load(value)
            values = merged(values, nested(name.split("."), listed))
    assert values
    assert render() != render(values)


def test_values_in_the_table_exist() -> None:
    table = re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE)
    names = re.findall(r"`([a-zA-Z.*]+)", " ".join(table))
    assert "gateway.drainSeconds" in names
    for name in names:
        tree: Any = VALUES
        for part in name.removesuffix(".*").split("."):
            assert part in tree, name
            tree = tree[part]


def test_policy_for_pools_fits_the_schema_of_kubernetes() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    policy = yaml.safe_load(block)
    assert "1.34" == kubernetes_validate.validate(policy, "1.34", strict=True)[:4]
