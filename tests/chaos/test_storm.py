"""``make chaos``, small: every kind of fault that needs no rights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.report import breaches_of, table_of
from tests.chaos.storm import Plan, Storm

SMALL = Plan(
    seed=3,
    engines=6,
    sequences=16,
    streams=16,
    others=4,
    tokens=80,
    seconds=20.0,
    namespaces=False,
    # The machines that run tests are shared.
    gap_p99_seconds=20.0,
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.pain_18
@pytest.mark.pain_14
@pytest.mark.pain_5
async def test_no_stream_shows_it_when_replicas_fail_under_it_every_two_seconds(
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    outcome = await Storm(SMALL, logs=tmp_path, say=lines.append).run()
    lines += table_of(SMALL, outcome)
    assert [] == breaches_of(SMALL, outcome), "\n".join(lines)
    assert 4 == len([kind for kind, count in outcome.faults.items() if count])
    assert len(outcome.records) > 40
