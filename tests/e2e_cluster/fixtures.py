"""The installed release, and the table of stories."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pointsman_api.modelpool import MODELS_FOLDER
from pointsman_serving.models.cache import models_directory
from tests.cluster.node.cluster import NodeCluster
from tests.e2e_cluster.release import Release, small_values
from tests.e2e_cluster.table import StoryTable
from tests.e2e_cluster.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.node.existing import ExistingCluster

TABLE_VARIABLE = "POINTSMAN_E2E_TABLE"
"""A file that gets the table as JSON."""


@pytest.fixture(scope="session")
def stories(request: pytest.FixtureRequest) -> Iterator[StoryTable]:
    """Printed when all stories have been told."""
    table = StoryTable()
    yield table
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{table}")
    if path := os.environ.get(TABLE_VARIABLE):
        table.write(Path(path))


@pytest.fixture(scope="session")
def world(node_cluster: NodeCluster | ExistingCluster, stories: StoryTable) -> World:
    """The cluster with the chart installed from images that were built here."""
    if isinstance(node_cluster, NodeCluster):
        _lay_models(node_cluster)
    release = Release(cluster=node_cluster)
    values = small_values(node_cluster)
    with stories.story("helm install") as row:
        row.note(f"operator and gateways ready after {release.install(values):.1f} s")
    return World(node_cluster, release)


def _lay_models(cluster: NodeCluster) -> None:
    """Put the quickstart's models where the node's pods look for them."""
    program = Path(sys.executable).with_name("pointsman")
    for words in (["import", "smollm2"], ["upcycle", "smollm2", "smollm2-moe"]):
        subprocess.run([program, "model", *words], check=True, capture_output=True)
    bind = 'mkdir -p "$2"; mountpoint -q "$2" || mount --bind "$1" "$2"'
    cluster.sandbox.run(["sh", "-c", bind, "sh", models_directory(), MODELS_FOLDER])
