"""Laws are tried without a stop-watch: machines that run them are shared."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.pains import register_markers

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_configure(config: pytest.Config) -> None:
    register_markers(config)
