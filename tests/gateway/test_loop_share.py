from __future__ import annotations

import asyncio

import pytest

from pointsman_serving.gateway.loop_share import LoopShare


@pytest.mark.parametrize("piece_seconds", [0.0001, 0.001, 0.05])
def test_work_waits_when_it_has_taken_its_share(piece_seconds: float) -> None:
    now = worked = 0.0
    share = LoopShare(share=0.25, clock=lambda: now)
    for _ in range(1_000):
        now += share.wait_seconds
        assert 0.0 == share.wait_seconds
        now += piece_seconds
        worked += piece_seconds
        share.spent(piece_seconds)
    assert 0.25 == pytest.approx(worked / now, rel=0.1)


async def test_work_never_waits_when_it_takes_less_than_its_share() -> None:
    now = 0.0
    share = LoopShare(share=0.25, clock=lambda: now)
    for _ in range(100):
        await asyncio.wait_for(share.turn(), 1)
        share.spent(0.0001)
        now += 0.001
