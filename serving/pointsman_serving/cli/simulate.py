"""`pointsman simulate`: what a rule of choosing instances would do to a workload."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pointsman_serving.cli.errors import RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman_serving.simulator.experiment import Job, Result
    from pointsman_serving.simulator.fleet import FleetEvent
    from pointsman_serving.simulator.workload import Workload

_SHOWN: Final = ("pointsman", "lmetric", "min-ttft", "least-requests", "round-robin")
_TABLE_WIDTH: Final = 300
_EVENT: Final = re.compile(
    r"(?P<kind>add|remove|crash|slow):(?P<at>[0-9.]+)"
    r"(?::(?P<instance>[0-9]+))?(?::(?P<number>[0-9.]+))?"
)


def simulate(
    trace: Annotated[
        Path | None,
        typer.Option(help="A recorded trace: Mooncake's .jsonl or Azure's .csv."),
    ] = None,
    generate: Annotated[
        str, typer.Option(help="Generated traffic instead: tool-agent or multi-turn.")
    ] = "",
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="A rule, such as pointsman, lmetric+reject or sglang:cache_threshold=0.3; may be "
            "repeated. `all`: every one that needs no quality data.",
            show_default=", ".join(_SHOWN),
        ),
    ] = None,
    list_arms: Annotated[bool, typer.Option("--list-arms", help="Name the rules.")] = False,
    instances: Annotated[int, typer.Option(help="How many, each a 14B model on an H100.")] = 8,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second; else as the workload has them.")
    ] = None,
    goodput: Annotated[
        bool, typer.Option("--goodput", help="Search for the highest rate that is served in time.")
    ] = False,
    share: Annotated[float, typer.Option(help="In time means: so large a share.")] = 0.9,
    slo: Annotated[float, typer.Option(help="Objective of the time to first token, seconds.")] = 5,
    warm_up: Annotated[int, typer.Option(help="So many requests do not count at first.")] = 500,
    requests: Annotated[
        int, typer.Option(help="How many requests of the workload; 0: all, or 8000 generated.")
    ] = 0,
    copies: Annotated[int, typer.Option(help="Clone the sessions of the workload so often.")] = 1,
    seeds: Annotated[int, typer.Option(help="How many runs of each rule.")] = 1,
    gateways: Annotated[int, typer.Option(help="How many share the instances.")] = 1,
    lag: Annotated[float, typer.Option(help="How old the metrics are that rules see, s.")] = 0.0,
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="add:AT, remove:AT:INSTANCE, crash:AT:INSTANCE[:BACK_AFTER] or "
            "slow:AT:INSTANCE:FACTOR, times in seconds; may be repeated."
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="How many at once; 0: one for each core.")] = 0,
    output: Annotated[
        str, typer.Option("--json", help="Write all figures as JSON there; - is stdout.")
    ] = "",
) -> None:
    """Run a workload through a simulated fleet under each rule, and compare what came of it."""
    # These need the gateway's packages, which `pointsman --help` must not.
    from pointsman_serving.simulator.catalog import KNOWN_ARMS, parse_arm
    from pointsman_serving.simulator.experiment import Job
    from pointsman_serving.simulator.fleet import Group
    from pointsman_serving.simulator.report import document, table_rows

    if list_arms:
        width = max(map(len, KNOWN_ARMS))
        for spec in KNOWN_ARMS.values():
            print(f"{spec.name:<{width}}  {spec.family.value:<8}  {spec.source}")
        return
    names = list(arm or _SHOWN)
    if "all" in names:
        names = [spec.name for spec in KNOWN_ARMS.values() if not {"pools"} & {*spec.needs}]
    try:
        workload = _workload(trace, generate, requests, copies)
        events = tuple(_event(text) for text in event or ())
        jobs = [
            Job(
                arm=parse_arm(name),
                workload=workload,
                groups=(Group(count=instances),),
                seed=seed,
                rate=rate,
                search=goodput,
                search_from=rate or 0.0,
                share=_share(share),
                ttft_slo_seconds=slo,
                warm_up=warm_up,
                lag_seconds=lag,
                gateways=gateways,
                events=events,
            )
            for name in names
            for seed in range(seeds)
        ]
        results = _run(jobs, processes)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if output == "-":
        sys.stdout.write(json.dumps(document(results), indent=2) + "\n")
        return
    if output:
        try:
            Path(output).write_text(json.dumps(document(results), indent=2) + "\n")
        except OSError as error:
            raise RunError(f"--json {output} cannot be written: {error}.") from error
    titles, rows = table_rows(results)
    # Cut to the terminal's width the figures would be gone; so long lines wrap.
    Console(width=_TABLE_WIDTH).print(_table(titles, rows), crop=False)


def _run(jobs: Sequence[Job], processes: int) -> list[Result]:
    from pointsman_serving.simulator.parallel import run_jobs

    for job in jobs:
        _ = job.arm.spec  # an unknown name shows before anything runs
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("simulating", total=len(jobs))

        def done(result: Result) -> None:
            progress.update(task, advance=1, description=f"{result.job.arm} done")
            if not console.is_terminal:
                console.print(f"{result.job.arm}, seed {result.job.seed}: done", soft_wrap=True)

        return run_jobs(jobs, processes=processes, done=done)


def _workload(trace: Path | None, generate: str, requests: int, copies: int) -> Workload:
    from pointsman_serving.simulator.workload import Workload, WorkloadKind

    if (trace is None) == (not generate):
        raise UsageError("Give either --trace FILE or --generate tool-agent (or multi-turn).")
    if trace is None:
        known = (WorkloadKind.TOOL_AGENT.value, WorkloadKind.MULTI_TURN.value)
        if generate not in known:
            raise UsageError(f"--generate {generate} is not known: give {' or '.join(known)}.")
        kind = WorkloadKind(generate)
    else:
        kinds = {".jsonl": WorkloadKind.MOONCAKE, ".csv": WorkloadKind.AZURE}
        if trace.suffix not in kinds:
            raise UsageError(
                f"--trace {trace} is neither .jsonl (Mooncake's format) nor .csv (Azure's): "
                "name the file by what is in it."
            )
        kind = kinds[trace.suffix]
    path = "" if trace is None else str(trace)
    return Workload(kind=kind, path=path, requests=requests, copies=copies)


def _event(text: str) -> FleetEvent:
    from pointsman_serving.simulator.fleet import Added, Crashed, Removed, Slowed

    found = _EVENT.fullmatch(text)
    problem = UsageError(
        f"--event {text!r} is not known: write add:60, remove:60:0, crash:60:0:30 or slow:60:0:2."
    )
    if found is None:
        raise problem
    kind, instance, number = found["kind"], found["instance"], found["number"]
    at = float(found["at"])
    if kind == "add" and instance is None:
        return Added(at_seconds=at)
    if instance is None or (kind == "slow") > (number is not None) or kind == "add":
        raise problem
    if kind == "remove":
        return Removed(at_seconds=at, instance=int(instance))
    if kind == "slow":
        return Slowed(at_seconds=at, instance=int(instance), slowness=float(number))
    back = None if number is None else float(number)
    return Crashed(at_seconds=at, instance=int(instance), back_after_seconds=back)


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise UsageError(f"--share {share:g} is no share: give a number above 0, at most 1.")
    return share


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
