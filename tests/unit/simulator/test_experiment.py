from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import fmean

import pytest

from pointsman_serving.simulator.catalog import parse_arm
from pointsman_serving.simulator.experiment import Job, run_job
from pointsman_serving.simulator.fleet import Crashed, Group, Slowed
from pointsman_serving.simulator.parallel import run_jobs
from pointsman_serving.simulator.report import document, table_rows
from pointsman_serving.simulator.workload import Workload, WorkloadKind

WORKLOAD = Workload(kind=WorkloadKind.TOOL_AGENT, requests=400)


def job(arm: str = "least-requests", **fields: object) -> Job:
    known: dict[str, object] = {
        "arm": parse_arm(arm),
        "workload": WORKLOAD,
        "groups": (Group(count=2),),
        "warm_up": 50,
    }
    return Job(**(known | fields))  # type: ignore[arg-type]


def test_goodput_is_where_attainment_passes_the_share() -> None:
    result = run_job(job(search=True, search_from=2.0, tolerance=0.05))

    assert result.goodput is not None
    assert result.rate == result.goodput.rate
    assert result.figures.attainment >= 0.9
    above = [attained for rate, attained in result.goodput.tried if rate > result.rate]
    assert above
    assert all(attained < 0.9 for attained in above)
    again = run_job(job(rate=result.rate * 1.5))
    assert again.figures.attainment < 0.9


def test_late_requests_do_not_count_when_they_are_of_the_warm_up() -> None:
    slow = [Slowed(at_seconds=0.0, instance=index, slowness=30.0) for index in range(2)]
    normal = [Slowed(at_seconds=80.0, instance=index, slowness=1.0) for index in range(2)]

    result = run_job(
        job(search=True, search_from=1.0, tolerance=0.5, warm_up=200, events=(*slow, *normal))
    )

    assert result.rate >= 1.0
    assert run_job(job(rate=1.0, warm_up=0, events=(*slow, *normal))).figures.attainment < 0.9


def test_results_are_the_same_when_several_run_at_once() -> None:
    jobs = [job(name, rate=3.0, seed=seed) for name in ("random", "lmetric") for seed in (0, 1)]
    done: list[str] = []

    together = run_jobs(jobs, processes=2, done=lambda each: done.append(str(each.job.arm)))

    assert document(run_jobs(jobs, processes=1)) == document(together)
    assert ["lmetric", "lmetric", "random", "random"] == sorted(done)


def test_mistake_in_a_job_is_told_when_several_run_at_once() -> None:
    with pytest.raises(ValueError, match="there is no arm 'best'"):
        run_jobs([job(), job("best")], processes=2)


def test_table_has_a_row_for_each_arm_with_the_spread_of_its_seeds() -> None:
    results = [run_job(job(rate=rate, seed=seed)) for seed, rate in ((0, 2.0), (1, 3.0))]

    titles, rows = table_rows(results)

    (cells,) = (dict(zip(titles, row, strict=True)) for row in rows)
    assert ("least-requests", "2.50 ±0.50") == (cells["arm"], cells["rate r/s"])
    assert "quality" not in cells
    assert "goodput r/s" not in cells


def test_document_says_what_was_run_and_is_json() -> None:
    crash = Crashed(at_seconds=5.0, instance=1)
    result = run_job(job(rate=2.0, events=(crash,), lag_seconds=0.5, gateways=2))

    (found,) = json.loads(json.dumps(document([result]), allow_nan=False))["results"]

    assert {"at_seconds": 5.0, "instance": 1, "back_after_seconds": None, "type": "Crashed"} == (
        found["events"][0]
    )
    assert ("least-requests", 2.0, 0.5, 2) == (
        found["arm"],
        found["rate"],
        found["lag_seconds"],
        found["gateways"],
    )
    assert found["figures"]["quality"] is None


# Of the figures that were published for this fleet, the ones of rules without parameters.
PUBLISHED = {
    "random": 1.5,
    "round-robin": 2.1,
    "least-requests": 4.0,
    "least-pending-prefill": 5.4,
}


@pytest.mark.parametrize("arm", PUBLISHED)
def test_published_goodput_is_met_within_a_tenth(arm: str) -> None:
    folder = os.environ.get("POINTSMAN_TRACES")
    if not folder:
        pytest.skip("POINTSMAN_TRACES names no folder with mooncake_conversation.jsonl")
    path = Path(folder) / "mooncake_conversation.jsonl"
    trace = Workload(kind=WorkloadKind.MOONCAKE, path=str(path))

    def attained(rate: float) -> float:
        jobs = [Job(arm=parse_arm(arm), workload=trace, rate=rate, seed=seed) for seed in range(3)]
        return fmean(run_job(each).figures.attainment for each in jobs)

    assert attained(0.9 * PUBLISHED[arm]) >= 0.9
    assert attained(1.1 * PUBLISHED[arm]) < 0.9
