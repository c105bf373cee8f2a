from __future__ import annotations

import pytest

from pointsman_api.route_table import Target
from pointsman_serving.routing.quality import NEUTRAL_QUALITY, prior_quality
from tests.unit.routing.fleet import pool_entry


@pytest.mark.parametrize(
    ("quality", "stated", "task", "expected"),
    [
        ({"Default": 0.6, "code": 0.8}, 0.3, "code", 0.3),
        ({"Default": 0.6, "code": 0.8}, 0.0, "code", 0.0),
        ({"Default": 0.6, "code": 0.8}, None, "code", 0.8),
        ({"Default": 0.6, "code": 0.8}, None, "math", 0.6),
        ({"code": 0.8}, None, "math", NEUTRAL_QUALITY),
        ({}, None, "Default", NEUTRAL_QUALITY),
    ],
)
def test_most_specific_quality_is_taken(
    quality: dict[str, float], stated: float | None, task: str, expected: float
) -> None:
    pool = pool_entry(quality=quality)
    assert prior_quality(Target(pool="dense", quality=stated), pool, task) == expected
