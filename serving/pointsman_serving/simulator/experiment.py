"""One job: an arm on a fleet under a workload, at a rate or at the highest that it sustains."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from pointsman_serving.simulator.arms import ArmContext
from pointsman_serving.simulator.arms.prediction import PoolFacts
from pointsman_serving.simulator.fleet import Group
from pointsman_serving.simulator.ideal import ideal_cached_tokens
from pointsman_serving.simulator.measure import Figures, Goodput, attainment, goodput, measure
from pointsman_serving.simulator.record import GiveUp
from pointsman_serving.simulator.simulation import Simulation
from pointsman_serving.simulator.workloads.arrivals import mean_rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pointsman_serving.simulator.arms.clusters import ClusterTable
    from pointsman_serving.simulator.arms.prediction import Predictor
    from pointsman_serving.simulator.catalog import ArmChoice
    from pointsman_serving.simulator.fleet import FleetEvent
    from pointsman_serving.simulator.record import Outcome
    from pointsman_serving.simulator.request import SimRequest
    from pointsman_serving.simulator.workload import Workload

WARM_UP: int = 500
"""The first requests do not count, as in DualMap's tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is run."""

    arm: ArmChoice
    workload: Workload
    groups: tuple[Group, ...] = (Group(count=8),)
    seed: int = 0
    """Of the arm, of a generator, and of the spreading of a trace's ticks."""
    rate: float | None = None
    """Requests a second; None: as the workload has them."""
    search: bool = False
    """Look for the highest rate that meets ``share``, and measure there."""
    search_from: float = 0.0
    """Where the search begins; 0: at the workload's own rate."""
    share: float = 0.9
    tolerance: float = 0.02
    """Relative width of the interval in which the goodput lies, at the end."""
    ttft_slo_seconds: float = 5.0
    warm_up: int = WARM_UP
    lag_seconds: float = 0.0
    gateways: int = 1
    events: tuple[FleetEvent, ...] = ()
    sample_seconds: float = 5.0
    predictor: Predictor | None = None
    """What arms that choose the model are told; None: such arms cannot run."""
    clusters: ClusterTable | None = None
    """What Avengers-Pro has learned of groups of prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a job."""

    job: Job
    rate: float
    """At which the figures were measured."""
    figures: Figures
    goodput: Goodput | None = None
    """Where it was searched for."""


def run_job(job: Job) -> Result:
    """Do it.

    Raises:
        ValueError: no such arm or parameter, too short a workload, or a trace that cannot be read.
    """
    requests = job.workload.make(job.seed)
    _check_warm_up(len(requests), job.warm_up)
    natural = mean_rate(requests)
    found: Goodput | None = None
    rate = job.rate or natural
    if job.search:
        low = job.search_from or natural
        found = goodput(
            lambda tried: _attained(job, tried),
            low=low,
            high=low * 1.25,
            share=job.share,
            tolerance=job.tolerance,
        )
        rate = found.rate or found.tried[0][0]
    figures = measure(
        simulate(job, rate),
        ttft_slo_seconds=job.ttft_slo_seconds,
        warm_up=job.warm_up,
        ideal=_ideal_at(job.workload, job.seed, rate),
    )
    return Result(job=job, rate=rate, figures=figures, goodput=found)


def simulate(job: Job, rate: float, *, give_up: GiveUp | None = None) -> Outcome:
    """One run of a job at a rate."""
    context = ArmContext(
        ttft_slo_seconds=job.ttft_slo_seconds,
        pools=pool_facts(job.groups),
        predictor=job.predictor,
        clusters=job.clusters,
    )
    arms = [
        job.arm.make(replace(context, seed=job.seed + number)) for number in range(job.gateways)
    ]
    return Simulation(
        job.groups,
        arms,
        _requests_at(job.workload, job.seed, rate),
        lag_seconds=job.lag_seconds,
        events=job.events,
        seed=job.seed,
        sample_seconds=0.0 if give_up else job.sample_seconds,
        give_up=give_up,
    ).run()


def pool_facts(groups: Sequence[Group]) -> dict[str, PoolFacts]:
    """What arms are told of the pools: prices, and the time of a token at the nominal batch."""
    facts = {}
    for group in groups:
        profile = group.profile
        batch = min(group.slots or profile.max_sequences, profile.max_sequences)
        facts[group.pool] = PoolFacts(
            input_dollars_per_million=1e6 * group.input_dollars,
            output_dollars_per_million=1e6 * group.output_dollars,
            tpot_seconds=profile.iteration_seconds + profile.decode_sequence_seconds * batch,
            size_billions=group.size_billions,
        )
    return facts


def _attained(job: Job, rate: float) -> float:
    counted = len(job.workload.make(job.seed)) - job.warm_up
    most_late = math.floor((1.0 - job.share) * counted)
    limit = GiveUp(ttft_seconds=job.ttft_slo_seconds, most_late=most_late, warm_up=job.warm_up)
    outcome = simulate(job, rate, give_up=limit)
    if outcome.gave_up:
        return 0.0
    return attainment(outcome.records[job.warm_up :], job.ttft_slo_seconds)


def _check_warm_up(count: int, warm_up: int) -> None:
    if count <= warm_up:
        raise ValueError(
            f"the workload has {count} requests and the first {warm_up} do not count: "
            "give a longer workload or a shorter warm-up"
        )


@lru_cache(maxsize=2)
def _requests_at(workload: Workload, seed: int, rate: float) -> list[SimRequest]:
    return workload.at_rate(rate, seed)


@lru_cache(maxsize=2)
def _ideal_at(workload: Workload, seed: int, rate: float) -> Mapping[SimRequest, int]:
    return ideal_cached_tokens(_requests_at(workload, seed, rate))
