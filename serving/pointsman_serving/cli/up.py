"""`pointsman up`: the pools on Ray Serve and the gateway in front of them, on this machine."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.table import Table

from pointsman_api.manifests import ManifestErrors
from pointsman_serving.cli.interrupt import Interrupt, run_interruptible
from pointsman_serving.cli.phases import Phases
from pointsman_serving.cli.plan import Machine, read_plan
from pointsman_serving.cli.stack import Stack, running_stack
from pointsman_serving.cli.validate import print_errors, summary
from pointsman_serving.cli.watch import FileWatch, PoolWatch, warn
from pointsman_serving.cluster.accelerators import engines_use_gpus
from pointsman_serving.engines.serve_listing import PoolStatus
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.models.cache import models_directory

_FOLLOW_SECONDS = 1.0
STOPPING = "Stopping: running requests may finish; Ctrl-C again cuts them."
_DRAIN_SECONDS = 30.0


def up(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Files, or folders of YAML files.", show_default=False),
    ],
    listen: Annotated[
        str, typer.Option(help="Address of the endpoint; 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8080,
    models_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that stands for /var/lib/pointsman/models. [default: the cache's models]",
            show_default=False,
        ),
    ] = None,
    secrets_dir: Annotated[
        Path | None, typer.Option(help="Folder with secrets as files: NAME/KEY.")
    ] = None,
    ready_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds until every replica must be ready.")
    ] = 900.0,
    follow: Annotated[bool, typer.Option(help="Apply changes of the files while it runs.")] = True,
    status: Annotated[
        bool, typer.Option(help="Serve GET /status, which names internal addresses.")
    ] = True,
    lame_duck: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds to serve on after SIGTERM while /readyz says no."),
    ] = 0.0,
) -> None:
    """Deploy the pools through Ray Serve and serve the endpoint until Ctrl-C."""
    console = Console(stderr=True)
    quiet_logs()
    machine = Machine(
        models=models_dir or models_directory(), secrets=secrets_dir, has_gpus=engines_use_gpus()
    )
    try:
        plan = read_plan(paths, machine)
    except ManifestErrors as failure:
        print_errors(failure, console)
        raise typer.Exit(2) from None
    warn(plan, console)
    settings = GatewaySettings(
        host=listen,
        port=port,
        drain_seconds=_DRAIN_SECONDS,
        status=status,
        lame_duck_seconds=lame_duck,
    )

    async def serve(interrupt: Interrupt) -> None:
        console.print(f"{summary(plan.manifests)}: valid")
        phases = Phases(console)
        async with running_stack(plan, settings, phases) as stack:
            with phases.phase("replicas") as show:
                await stack.until_ready(show, timeout_seconds=ready_timeout)
            interrupt.end_orderly()
            console.print(endpoint_text(stack))
            if statuses := await stack.statuses():
                console.print(replica_table(statuses))
            console.print("Ctrl-C ends it.")
            files = FileWatch(stack, paths, machine, console) if follow else None
            await _watch(interrupt, PoolWatch(stack, console), files)
            console.print(STOPPING)

    if not run_interruptible(serve):
        console.print("Stopped before it was ready.")
        raise typer.Exit(130)


async def _watch(interrupt: Interrupt, pools: PoolWatch, files: FileWatch | None) -> None:
    """Until told to stop.

    Raises:
        RunError: Ray has ended.
    """
    while not interrupt.requested.is_set():
        try:
            await asyncio.wait_for(interrupt.requested.wait(), _FOLLOW_SECONDS)
        except TimeoutError:
            if files is not None:
                await files.look()
            await pools.look()


def endpoint_text(stack: Stack) -> str:
    """Where the endpoint is and what it answers to."""
    names = ", ".join(sorted(stack.plan.table.routes))
    return f"[bold green]Ready[/bold green]: {stack.gateway.url}/v1 serves {names}"


def replica_table(statuses: Mapping[str, PoolStatus]) -> Table:
    """Every replica with its address and process."""
    table = Table("pool", "replica", "address", "process", title="Replicas", title_justify="left")
    for status in statuses.values():
        for replica in status.replicas:
            address = f"{replica.host}:{replica.port}" if replica.port else replica.state
            table.add_row(status.pool, replica.replica, address, str(replica.pid or ""))
    return table


def quiet_logs() -> None:
    """Show warnings and errors on stderr; the rest is for gateways in clusters."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("%H:%M:%S", utc=False),
            # The default shows the local variables of each frame, and so the users' prompts.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
    )
