"""Tests against a real Kubernetes API server: its fixtures, and its programs before the tests."""

from __future__ import annotations

import pytest

from tests.cluster.fixtures import (
    api_server,
    kuberay_installed,
    kuberay_missing,
    make_programs,
    namespace,
    stoppable_api_server,
)

__all__ = [
    "api_server",
    "kuberay_installed",
    "kuberay_missing",
    "namespace",
    "stoppable_api_server",
]


def pytest_collection_finish(session: pytest.Session) -> None:
    make_programs(session)
