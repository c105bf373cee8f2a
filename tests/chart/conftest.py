"""What the chart's tests need is made before their time limits run."""

from __future__ import annotations

import pytest

from tests.cluster.fixtures import make_programs


def pytest_collection_finish(session: pytest.Session) -> None:
    make_programs(session)
