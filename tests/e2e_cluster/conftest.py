"""A node whose pods run, for the tests of this folder: they are run when they are asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.fixtures import KUBECONFIG_VARIABLE
from tests.cluster.node import recipes
from tests.cluster.node.cluster import NodeCluster
from tests.cluster.node.existing import ExistingCluster
from tests.cluster.node.layout import Layout
from tests.cluster.node.phases import Phases
from tests.cluster.node.start import Options, start
from tests.e2e_cluster.fixtures import stories as stories
from tests.e2e_cluster.fixtures import world as world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.node.images import Recipe

NAME_VARIABLE = "POINTSMAN_E2E_CLUSTER"
"""A cluster that `python -m tests.cluster.node up --keep --name NAME` left running; it stays."""

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs a Kubernetes whose pods run; `make e2e`")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = (config.invocation_params.dir / word.partition("::")[0] for word in config.args)
    named = any(path.resolve().is_relative_to(HERE) for path in asked)
    return None if named or "cluster" in str(config.option.markexpr) else True


@pytest.fixture(scope="session")
def node_cluster(request: pytest.FixtureRequest) -> Iterator[NodeCluster | ExistingCluster]:
    """The cluster with KubeRay; ended after the last test unless it was there before."""
    if kubeconfig := os.environ.get(KUBECONFIG_VARIABLE):
        yield ExistingCluster(Path(kubeconfig))
        return
    if name := os.environ.get(NAME_VARIABLE):
        yield NodeCluster(Layout.named(name))
        return
    capture = request.config.pluginmanager.getplugin("capturemanager")
    phases = Phases()
    with capture.global_and_fixture_disabled():
        print()
        cluster = start(Options(name="e2e", images=_images()), phases)
    with cluster:
        yield cluster


def _images() -> list[Recipe]:
    return [recipes.engine_image(), recipes.redis_image()]
