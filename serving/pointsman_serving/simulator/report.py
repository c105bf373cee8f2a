"""Results as a document and as rows of text; several seeds of one arm become one row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pointsman_serving.simulator.experiment import Result

_COLUMNS: Final[tuple[tuple[str, Callable[[Result], float], str], ...]] = (
    ("goodput r/s", lambda each: math.nan if each.goodput is None else each.goodput.rate, "{:.2f}"),
    ("rate r/s", lambda each: math.nan if each.goodput else each.rate, "{:.2f}"),
    ("in time", lambda each: each.figures.attainment, "{:.1%}"),
    ("rejected", lambda each: each.figures.rejected, "{:.1%}"),
    ("TTFT p50 s", lambda each: each.figures.ttft_seconds[0], "{:.2f}"),
    ("p90 s", lambda each: each.figures.ttft_seconds[1], "{:.2f}"),
    ("p99 s", lambda each: each.figures.ttft_seconds[2], "{:.1f}"),
    ("long p99 s", lambda each: each.figures.long_ttft_p99_seconds, "{:.1f}"),
    ("TPOT p50 ms", lambda each: 1000 * each.figures.tpot_seconds[0], "{:.0f}"),
    ("E2E mean s", lambda each: each.figures.e2e_mean_seconds, "{:.1f}"),
    ("hit", lambda each: each.figures.hit_rate, "{:.1%}"),
    ("of ideal", lambda each: each.figures.hit_share_of_ideal, "{:.0%}"),
    ("load CV", lambda each: each.figures.load_cv, "{:.2f}"),
    ("quality", lambda each: each.figures.quality, "{:.3f}"),
    ("$ / 1000", lambda each: each.figures.dollars_per_thousand, "{:.3f}"),
)


def table_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells: a row for each arm, in the order of its first result.

    A cell is the mean over the arm's results, with half the distance from the least to the
    greatest where there are several. Columns of which nothing is known are left out.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(str(result.job.arm), []).append(result)
    titles = ["arm"]
    columns = [list(groups)]
    for title, value, form in _COLUMNS:
        cells = [_cell([value(each) for each in group], form) for group in groups.values()]
        if any(cells):
            titles.append(title)
            columns.append([cell or "-" for cell in cells])
    return titles, [list(row) for row in zip(*columns, strict=True)]


def document(results: Sequence[Result]) -> dict[str, object]:
    """Everything about the results, for JSON; what is infinite or not known is null."""
    return {"results": [_plain(_result(each)) for each in results]}


def _cell(values: list[float], form: str) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return ""
    text = form.format(statistics.fmean(known))
    spread = (max(known) - min(known)) / 2
    return f"{text} ±{form.format(spread)}" if len(known) > 1 and spread < math.inf else text


def _result(result: Result) -> dict[str, object]:
    job = result.job
    found: dict[str, object] = {
        "arm": str(job.arm),
        "seed": job.seed,
        "workload": asdict(job.workload),
        "instances": [
            {"pool": group.pool, "count": group.count, "profile": asdict(group.profile)}
            for group in job.groups
        ],
        "gateways": job.gateways,
        "lag_seconds": job.lag_seconds,
        "events": [{"type": type(each).__name__, **asdict(each)} for each in job.events],
        "ttft_slo_seconds": job.ttft_slo_seconds,
        "warm_up": job.warm_up,
        "rate": result.rate,
        "figures": asdict(result.figures),
    }
    if result.goodput is not None:
        found["goodput"] = {
            "rate": result.goodput.rate,
            "share": job.share,
            "tried": [list(each) for each in result.goodput.tried],
        }
    return found


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
