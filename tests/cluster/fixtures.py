"""pytest fixtures over a real API server, and the programs that it needs, made in good time."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.api_server import ApiServer
from tests.cluster.binaries import BinaryMissingError, binary, kuberay_crds
from tests.cluster.binaries.recipes import API_LEVEL
from tests.cluster.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

CRDS = Path(__file__).resolve().parents[2] / "crds"
KUBECONFIG_VARIABLE = "POINTSMAN_TEST_KUBECONFIG"
_RAY_SERVICES = "rayservices.ray.io"
_RAY_KINDS = ("rayclusters", "rayservices")
_PROBLEM = pytest.StashKey[str]()


def make_programs(session: pytest.Session) -> None:
    """Build what the collected tests need, before any test's time limit runs.

    For ``pytest_collection_finish``. What goes wrong is told by the tests that need it.
    """
    wanted = any("api_server" in getattr(item, "fixturenames", ()) for item in session.items)
    if session.config.option.collectonly or not wanted:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    names = API_LEVEL if KUBECONFIG_VARIABLE not in os.environ else ("kubectl",)
    with capture.global_and_fixture_disabled():
        try:
            for name in names:
                binary(name)
            kuberay_crds()
        except BinaryMissingError as error:
            session.config.stash[_PROBLEM] = str(error)


@pytest.fixture(scope="session")
def api_server(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A Kubernetes API with our CRDs: an ``ApiServer``, one for each worker of pytest-xdist.

    With ``POINTSMAN_TEST_KUBECONFIG`` it is the cluster of that file's current context, where
    the CRDs are applied and stay.
    """
    if problem := request.config.stash.get(_PROBLEM, None):
        pytest.fail(problem, pytrace=False)
    files = sorted(CRDS.glob("*.yaml"))
    if kubeconfig := os.environ.get(KUBECONFIG_VARIABLE):
        cluster = Cluster(Path(kubeconfig))
        cluster.apply_crds(*files)
        yield cluster
        return
    with ApiServer() as server:
        server.apply_crds(*files)
        yield server


@pytest.fixture
def stoppable_api_server(api_server: Cluster) -> Iterator[ApiServer]:
    """The server for tests that stop it; it runs again for the next test."""
    if not isinstance(api_server, ApiServer):
        pytest.skip(f"the cluster of {KUBECONFIG_VARIABLE} is not ours to stop")
    yield api_server
    api_server.start()


@pytest.fixture
def kuberay_installed(api_server: Cluster) -> None:
    """KubeRay's CRDs are there (nothing acts on them)."""
    if not api_server.has_crd(_RAY_SERVICES):
        api_server.apply_crds(*ray_crds())


@pytest.fixture
def kuberay_missing(api_server: Cluster) -> None:
    """No CRD of KubeRay is there, whatever ran before."""
    if api_server.request("GET", "/apis/ray.io").status == 404:
        return
    if not api_server.can_stop:
        pytest.skip(f"the cluster of {KUBECONFIG_VARIABLE} has KubeRay, which stays there")
    api_server.delete_crds(*kuberay_crds())


@pytest.fixture
def namespace(api_server: Cluster) -> Iterator[str]:
    """A namespace of the test's own; on a cluster that stays it is deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    api_server.create_namespace(name)
    yield name
    if not api_server.can_stop:
        api_server.request("DELETE", f"/api/v1/namespaces/{name}")


def ray_crds() -> list[Path]:
    """What the operator has to do with: each of KubeRay's CRDs costs the server seconds."""
    return [path for path in kuberay_crds() if path.stem.endswith(_RAY_KINDS)]
