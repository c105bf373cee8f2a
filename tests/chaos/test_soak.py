"""``make soak``, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.line_chart import line_chart, short, steps
from benchmarks.resident import Sample, growth_percent
from benchmarks.soak_core import CoreSoak
from benchmarks.soak_sockets import SocketsSoak


@pytest.mark.slow
@pytest.mark.pain_4
@pytest.mark.pain_5
@pytest.mark.pain_24
def test_memory_is_flat_when_no_prompt_comes_twice() -> None:
    soak = CoreSoak(seed=1)
    outcome = soak.run(100_000, every=2_500, say=lambda _: None)
    assert 50_000 == outcome.conversations
    assert 16_384 >= outcome.cached_blocks > 5_000
    assert outcome.queued > 1_000
    half, end = outcome.samples[len(outcome.samples) // 2], outcome.samples[-1]
    # 400 bytes a request that were never given back would be seen.
    assert end.resident_mib - half.resident_mib < 20.0


@pytest.mark.slow
@pytest.mark.pain_5
@pytest.mark.pain_19
@pytest.mark.pain_24
async def test_gateway_holds_nothing_when_requests_end_in_every_way(tmp_path: Path) -> None:
    soak = SocketsSoak(seed=1, folder=tmp_path)
    outcome = await soak.run(4_000, every=100, say=lambda _: None)
    assert {} == outcome.leftovers
    assert {"200", "404", "left"} <= set(outcome.statuses)
    assert 4_000 == sum(outcome.statuses.values())
    # Those who sent half a request asked for nothing.
    assert 4_000 >= outcome.counted["requests"] > 3_900
    assert outcome.samples[-1].resident_mib < 256.0


def test_growth_is_of_the_last_half_when_the_first_fills_what_is_bounded() -> None:
    filling = [Sample(n, 0.0, 100.0 + min(n, 20) * 5.0) for n in range(64)]
    leaking = [Sample(n, 0.0, 100.0 + n) for n in range(64)]
    assert 0.0 == growth_percent(filling)
    assert growth_percent(leaking) > 10.0


def test_chart_shows_every_point_within_its_frame() -> None:
    chart = line_chart([(0, 10.0), (1e6, 90.0)], title="a < b", across="x", up="y")
    assert "a &lt; b" in chart
    assert '<polyline points="70.0,' in chart
    assert ["0", "50", "100", "150"] == [short(value) for value in steps(112.5)]
