"""Jobs on several cores."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING

from pointsman_serving.simulator.experiment import Job, Result, run_job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def run_jobs(
    jobs: Sequence[Job],
    *,
    processes: int = 0,
    done: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run all jobs; the results are in their order, and do not depend on how many run at once.

    Args:
        processes: how many at once; 0: one for each core that this process may use.
        done: called for each one that has ended, as they end.

    Raises:
        ValueError: what a job says is not valid; the others are given up.
    """
    processes = min(processes or len(os.sched_getaffinity(0)), len(jobs))
    results: dict[int, Result] = {}
    if processes <= 1:
        for number, job in enumerate(jobs):
            results[number] = run_job(job)
            if done is not None:
                done(results[number])
        return list(results.values())
    # Forked processes would share locks of threads that they do not have.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {pool.submit(run_job, job): number for number, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                result = results[futures[future]] = future.result()
                if done is not None:
                    done(result)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [results[number] for number in range(len(jobs))]
