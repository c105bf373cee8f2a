"""While `pointsman up` serves: changed files are applied, and what becomes of pools is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pointsman_api.manifests import ManifestErrors
from pointsman_serving.cli.cluster_fields import unused_fields
from pointsman_serving.cli.errors import RunError
from pointsman_serving.cli.plan import Machine, Plan, read_plan
from pointsman_serving.cli.stack import Stack
from pointsman_serving.cli.validate import print_errors, summary
from pointsman_serving.engines.serve_listing import PoolState

Signature = list[tuple[str, int, int]]


def signature(paths: Sequence[Path]) -> Signature:
    """What changes when a file does; files that vanish meanwhile are left out."""
    found = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            try:
                status = file.stat()
            except OSError:
                continue
            found.append((str(file), status.st_mtime_ns, status.st_size))
    return found


def warn(plan: Plan, console: Console) -> None:
    """Say what the files hold that is not used here."""
    for skipped in plan.manifests.skipped:
        console.print(f"not used: {escape(skipped)}", style="yellow")
    for pool in plan.manifests.pools:
        for unused in unused_fields(pool):
            console.print(f"not used: ModelPool {pool.key}, {escape(unused)}", style="yellow")
    for policy in plan.manifests.policies:
        if (name := policy.spec.gateway_ref.name) != "default":
            console.print(
                f"not used: RoutePolicy {policy.key} is for the gateway {name!r}, and this one is "
                "'default'",
                style="yellow",
            )


@dataclass(slots=True)
class FileWatch:
    """Applies the files whenever they change; what is wrong changes nothing."""

    stack: Stack
    paths: Sequence[Path]
    machine: Machine
    console: Console
    _applied: Signature = field(default_factory=list)
    _told: str = ""

    def __post_init__(self) -> None:
        """What is there now has been applied already."""
        self._applied = signature(self.paths)

    async def look(self) -> None:
        """Apply the files if they differ from those that were applied last."""
        current = signature(self.paths)
        if current == self._applied:
            return
        try:
            plan = read_plan(self.paths, self.machine)
            changed = await self.stack.apply(plan)
        except ManifestErrors as failure:
            self._applied = current
            print_errors(failure, self.console)
            self._keep_on("The files changed and are wrong")
        except (RunError, ValueError) as error:
            # Ray may be back in a moment: the same files are tried again.
            self._keep_on(f"error: {error}")
        else:
            if changed:
                warn(plan, self.console)
                self.console.print(f"The files changed: applied ({summary(plan.manifests)}).")
            elif self._told:
                self.console.print("The files are right again, and say what is running.")
            self._applied, self._told = current, ""

    def _keep_on(self, cause: str) -> None:
        if cause != self._told or "wrong" in cause:
            self._told = cause
            text = f"{escape(cause)}; what was running goes on."
            self.console.print(text, style="yellow", soft_wrap=True)


@dataclass(slots=True)
class PoolWatch:
    """Tells when a pool fails, loses replicas or is whole again."""

    stack: Stack
    console: Console
    _states: dict[str, PoolState] = field(default_factory=dict)

    async def look(self) -> None:
        """Compare with the last look.

        Raises:
            RunError: Ray has ended.
        """
        for name, status in (await self.stack.statuses()).items():
            before = self._states.get(name, PoolState.READY)
            self._states[name] = status.state
            if status.state is before:
                continue
            if status.state in (PoolState.FAILED, PoolState.UNHEALTHY):
                text = escape(self.stack.failure(status))
                self.console.print(f"[yellow]{text}[/yellow]", soft_wrap=True)
            elif status.state is PoolState.READY:
                self.console.print(f"pool {name}: {status.ready}/{status.total} replicas ready")
