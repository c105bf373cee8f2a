"""The Containerfiles: what is pinned agrees, and nothing heavy or foreign gets in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from charts.tools.generate import CHART
from pointsman_operator.pods import CODE_MOUNT

ROOT = CHART.parents[1]
IMAGES = ROOT / "charts" / "images"
BOTH = pytest.mark.parametrize("name", ["Containerfile", "Containerfile.engine"])


def pins(path: Path) -> dict[str, str]:
    """Versions by package."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", path.read_text("utf-8"), re.MULTILINE))


def text(name: str) -> str:
    return (IMAGES / name).read_text("utf-8")


def test_pins_of_gateway_and_operator_agree_in_the_image_that_holds_both() -> None:
    gateway, operator = (
        pins(ROOT / "requirements" / f"{name}.txt") for name in ("gateway", "operator")
    )
    differing = {
        name for name in gateway.keys() & operator.keys() if gateway[name] != operator[name]
    }
    assert set() == differing


def test_pins_of_the_build_are_those_that_the_tests_ran_with() -> None:
    build, tested = pins(IMAGES / "build.txt"), pins(ROOT / "requirements" / "dev.txt")
    assert "hatchling" in build
    assert {} == {name: pin for name, pin in build.items() if tested.get(name) != pin}


def test_the_image_of_operator_and_gateway_holds_no_engine() -> None:
    held = {
        *pins(ROOT / "requirements" / "gateway.txt"),
        *pins(ROOT / "requirements" / "operator.txt"),
    }
    assert set() == held & {"torch", "ray", "vllm", "transformers", "scipy", "tokenizers"}


@BOTH
def test_containerfile_runs_as_nobody_from_a_base_that_can_be_replaced(name: str) -> None:
    lines = text(name).splitlines()
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm" in lines
    assert {"FROM ${BASE_IMAGE} AS build", "FROM ${BASE_IMAGE}"} == {
        line for line in lines if line.startswith("FROM ")
    }
    assert "USER 65532:65532" in lines


@BOTH
def test_containerfile_names_no_host(name: str) -> None:
    assert [] == re.findall(r"https?://|[a-z0-9-]+\.(?:io|com|org)\b", text(name))


@BOTH
def test_containerfile_copies_what_there_is(name: str) -> None:
    copied = [
        source
        for line in text(name).splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert copied
    assert [] == [source for source in copied if not (ROOT / source).exists()]


def test_the_image_leaves_the_folder_free_that_the_engines_pods_mount_over() -> None:
    # The init container of engines' pods mounts a volume there and fills it.
    assert CODE_MOUNT not in text("Containerfile")
