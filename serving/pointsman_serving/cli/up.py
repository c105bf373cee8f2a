"""`pointsman up`: the pools on Ray Serve and the gateway in front of them, on this machine."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.table import Table

from pointsman_api.manifests import ManifestErrors
from pointsman_serving.cli.errors import RunError
from pointsman_serving.cli.phases import Phases
from pointsman_serving.cli.plan import Machine, Plan, read_plan
from pointsman_serving.cli.stack import Stack, running_stack
from pointsman_serving.cli.validate import print_errors, summary
from pointsman_serving.cluster.accelerators import machine_has_gpus
from pointsman_serving.cluster.local_ray import LocalRaySettings
from pointsman_serving.cluster.status import PoolStatus
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.models.cache import models_directory

_FOLLOW_SECONDS = 1.0
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
) -> None:
    """Deploy the pools through Ray Serve and serve the endpoint until Ctrl-C."""
    console = Console(stderr=True)
    quiet_logs()
    machine = Machine(
        models=models_dir or models_directory(), secrets=secrets_dir, has_gpus=machine_has_gpus()
    )
    try:
        plan = read_plan(paths, machine)
    except ManifestErrors as failure:
        print_errors(failure, console)
        raise typer.Exit(2) from None
    _warn(plan, console)
    settings = GatewaySettings(host=listen, port=port, drain_seconds=_DRAIN_SECONDS)
    asyncio.run(
        _serve(plan, paths, machine, settings, console, ready_timeout=ready_timeout, follow=follow)
    )


async def _serve(
    plan: Plan,
    paths: list[Path],
    machine: Machine,
    settings: GatewaySettings,
    console: Console,
    *,
    ready_timeout: float,
    follow: bool,
) -> None:
    phases = Phases(console)
    stop = stop_event()
    console.print(f"{summary(plan.manifests)}: valid")
    async with running_stack(plan, settings, phases, ray_settings=LocalRaySettings()) as stack:
        with phases.phase("replicas") as show:
            ready = asyncio.create_task(stack.until_ready(show, timeout_seconds=ready_timeout))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([ready, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if stop.is_set():
                ready.cancel()
                return
            await ready
        console.print(endpoint_text(stack), replica_table(await stack.statuses()), sep="\n")
        console.print("Ctrl-C ends it.")
        await _run_until(stop, stack, paths, machine, console, follow=follow)
        console.print("Stopping: running requests may finish.")


async def _run_until(
    stop: asyncio.Event,
    stack: Stack,
    paths: list[Path],
    machine: Machine,
    console: Console,
    *,
    follow: bool,
) -> None:
    """Follow the files until told to stop.

    Raises:
        RunError: Ray has ended.
    """
    seen = _signature(paths)
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), _FOLLOW_SECONDS)
        except TimeoutError:
            if stack.ray is not None and not stack.ray.running:
                raise RunError(f"Ray has ended; its logs were in {stack.ray.logs}") from None
            current = _signature(paths)
            if follow and current != seen:
                seen = current
                await _apply(stack, paths, machine, console)


async def _apply(stack: Stack, paths: list[Path], machine: Machine, console: Console) -> None:
    try:
        plan = read_plan(paths, machine)
        changed = await stack.apply(plan)
    except ManifestErrors as failure:
        print_errors(failure, console)
        console.print("The files changed and are wrong: what was running goes on.", style="yellow")
    except RunError as error:
        console.print(f"error: {error}; what was running goes on.", style="red")
    else:
        if changed:
            _warn(plan, console)
            console.print(f"The files changed: applied ({summary(plan.manifests)}).")


def _signature(paths: list[Path]) -> list[tuple[str, int, int]]:
    """What changes when a file does; files that vanish meanwhile are left out."""
    signature = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            try:
                status = file.stat()
            except OSError:
                continue
            signature.append((str(file), status.st_mtime_ns, status.st_size))
    return signature


def _warn(plan: Plan, console: Console) -> None:
    for skipped in plan.manifests.skipped:
        console.print(f"not used: {skipped}", style="yellow")
    for policy in plan.manifests.policies:
        if (name := policy.spec.gateway_ref.name) != "default":
            console.print(
                f"not used: RoutePolicy {policy.key} is for the gateway {name!r}, and this one is "
                "'default'",
                style="yellow",
            )


def stop_event() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends the process in the usual way."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        event.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    return event


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
