"""Ray, the pools on it and the gateway, together in this process's care."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from pointsman_api.route_table import RouteTable
from pointsman_serving.cli.errors import RunError, UsageError
from pointsman_serving.cli.phases import Phases
from pointsman_serving.cli.plan import Plan
from pointsman_serving.cluster.local_ray import (
    LocalRay,
    LocalRayError,
    LocalRaySettings,
    start_local_ray,
)
from pointsman_serving.cluster.serve_api import ServeApiError
from pointsman_serving.engines.serve_listing import PoolState, PoolStatus
from pointsman_serving.gateway.discovery import (
    Publish,
    RayServeSource,
    application_name,
)
from pointsman_serving.gateway.server import Gateway, ListenError, listen
from pointsman_serving.gateway.settings import GatewaySettings

_POLL_SECONDS = 0.3
_LOG_LINES = 15
_DRAINED = "Graceful shutdown complete"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CAUSE = re.compile(r"^\s*(?:[\w.]+\.)?(\w+(?:Error|Exception): .+)$", re.MULTILINE)


class Stack:
    """A running Ray and gateway; made by :func:`running_stack`."""

    def __init__(self, plan: Plan, gateway: Gateway, ray: LocalRay | None) -> None:
        self._plan = plan
        self.gateway = gateway
        self.ray = ray

    @property
    def plan(self) -> Plan:
        """What is in force."""
        return self._plan

    async def apply(self, plan: Plan) -> bool:
        """Put another plan in force; pools whose configuration did not change are not touched.

        Returns:
            Whether anything differs from before.

        Raises:
            RunError: Ray refused it, or was not started because no pool needed it before. The
                route table then stays as it was.
        """
        if (plan.table, plan.applications) == (self._plan.table, self._plan.applications):
            return False
        if plan.applications != self._plan.applications:
            if self.ray is None:
                raise RunError("the first pool that runs on Ray: stop and start again to add it")
            try:
                await self.ray.deploy(plan.applications)
            except ServeApiError as error:
                raise RunError(str(error)) from error
        self.gateway.set_table(plan.table)
        self._plan = plan
        return True

    async def statuses(self) -> dict[str, PoolStatus]:
        """What Ray says of each pool.

        Raises:
            RunError: Ray has ended.
        """
        if self.ray is None:
            return {}
        try:
            return await self.ray.status()
        except LocalRayError as error:
            raise RunError(str(error)) from error
        except ServeApiError:
            # Busy or restarting its dashboard: what is running goes on.
            return {}

    async def until_ready(self, show: Callable[[str], None], *, timeout_seconds: float) -> None:
        """Wait until every pool has all its replicas and the gateway knows them.

        Raises:
            RunError: a pool failed, or the time is over; says which and why.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while not await self._ready(show):
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            waiting = ", ".join(
                f"{status.pool} {status.ready}/{status.total} {status.message}".strip()
                for status in (await self.statuses()).values()
                if status.state is not PoolState.READY
            )
            raise RunError(
                f"not ready after {timeout_seconds:.0f} s: {waiting or 'no replica seen'}"
                f"{self._logs_hint()}. Give more time with --ready-timeout."
            ) from None

    async def _ready(self, show: Callable[[str], None]) -> bool:
        wanted = {str(application["name"]) for application in self._plan.applications}
        statuses = await self.statuses()
        for status in statuses.values():
            if status.state is PoolState.FAILED:
                raise RunError(self.failure(status))
        found = [statuses[name] for name in sorted(wanted) if name in statuses]
        show(", ".join(f"{status.pool} {status.ready}/{status.total}" for status in found))
        if len(found) < len(wanted) or any(s.state is not PoolState.READY for s in found):
            return False
        known = {
            application_name(pool): len(addresses)
            for pool, addresses in self.gateway.plane.replicas.items()
        }
        return all(known.get(status.pool, 0) >= status.total for status in found)

    def failure(self, status: PoolStatus) -> str:
        """Why a pool is not well: the cause first, then what Ray and the replica's log say."""
        said = _COLOURS.sub("", status.message).strip()
        logs = [] if _causes(said) else self._logs_of(status)
        causes = _causes(said) or [cause for log in logs for cause in _causes(log)]
        lines = [f"pool {status.pool} is {status.state.lower()}: {(causes or [said])[-1]}"]
        if status.ready:
            lines.append(f"{status.ready} of its replicas serve on, as they were deployed before.")
        if causes and said:
            lines += said.splitlines()[-_LOG_LINES:]
        lines += [f"The end of a replica's log:\n{log}" for log in logs[:1]]
        return "\n".join(lines) + self._logs_hint()

    def _logs_of(self, status: PoolStatus) -> list[str]:
        """What replicas that died wrote last; one that was drained has nothing to tell."""
        if self.ray is None:
            return []
        logs = [self.ray.replica_log(replica, _LOG_LINES) for replica in reversed(status.dead)]
        return [_COLOURS.sub("", log) for log in logs if log and _DRAINED not in log]

    def _logs_hint(self) -> str:
        return "" if self.ray is None else f"\nRay's logs: {self.ray.logs}"


def ensure_port_free(host: str, port: int) -> None:
    """Say at once that a port is taken, before anything slow begins.

    Raises:
        UsageError: somebody listens there, or the address is not this machine's.
    """
    try:
        listen(host, port).close()
    except ListenError as error:
        raise UsageError(str(error.strerror)) from error


def _causes(text: str) -> list[str]:
    """The errors that a traceback ends with."""
    return _CAUSE.findall(text)


class _RaySource:
    """The replicas of a Ray that starts later than the gateway."""

    def __init__(self) -> None:
        self.ray: asyncio.Future[LocalRay] = asyncio.get_running_loop().create_future()

    async def run(self, table: Callable[[], RouteTable], publish: Publish) -> None:
        ray = await asyncio.shield(self.ray)
        source = RayServeSource(dashboard_url=ray.dashboard_url, token=ray.token)
        await source.run(table, publish)


@contextlib.asynccontextmanager
async def running_stack(
    plan: Plan, settings: GatewaySettings, phases: Phases
) -> AsyncIterator[Stack]:
    """Start the gateway, then Ray, and deploy the pools; end them all with the block.

    Raises:
        UsageError: the gateway's port is in use.
        RunError: Ray did not start, or refused the pools.
    """
    source = _RaySource()
    gateway = Gateway(settings=settings, table=plan.table)
    # The gateway starts first, so that a port in use is known at once, and ends first, so that
    # running requests still have their replicas.
    async with contextlib.AsyncExitStack() as below, contextlib.AsyncExitStack() as above:
        try:
            await above.enter_async_context(gateway.running([source]))
        except ListenError as error:
            raise UsageError(str(error.strerror)) from error
        ray = None
        if plan.applications:
            with phases.phase("Ray") as show:
                try:
                    ray = await start_local_ray(LocalRaySettings(cpus=plan.ray_cpus))
                    below.push_async_exit(_stop_of(ray))
                    show(f"dashboard {ray.dashboard_url}")
                    await ray.deploy(plan.applications)
                    source.ray.set_result(ray)
                except (LocalRayError, ServeApiError) as error:
                    raise RunError(str(error)) from error
        yield Stack(plan, gateway, ray)


def _stop_of(
    ray: LocalRay,
) -> Callable[[type[BaseException] | None, BaseException | None, object], Awaitable[None]]:
    """Ends Ray; where something failed, the logs that the error points to stay."""

    async def stop(kind: type[BaseException] | None, error: object, trace: object) -> None:
        await ray.stop(keep_logs=kind is not None and issubclass(kind, RunError))

    return stop
