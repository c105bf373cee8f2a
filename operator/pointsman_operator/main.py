"""The process: take part in the election, act while leading, end at once when not."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import kopf
import structlog

from pointsman_api.labels import FIELD_MANAGER
from pointsman_kube.client import Kube
from pointsman_kube.config import ConfigurationError
from pointsman_kube.errors import KubeError
from pointsman_kube.kinds import MODEL_POOL, ROUTE_POLICY
from pointsman_kube.tasks import end_task
from pointsman_operator.handlers import operator_registry, operator_settings
from pointsman_operator.health import Pulse, serve_health
from pointsman_operator.leader import Leader
from pointsman_operator.lease import Election
from pointsman_operator.logs import configure_logs
from pointsman_operator.metrics import OperatorMetrics
from pointsman_operator.objects import Owner
from pointsman_operator.ownership import read_owner
from pointsman_operator.process_settings import ProcessSettings, process_settings_from
from pointsman_operator.settings import OperatorSettings, settings_from

log = structlog.get_logger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
"""The lease is lost, or something that must not end has ended."""
EXIT_USAGE = 2
"""Settings, configuration or CRDs are wrong: another try will not help."""

_STOP_SECONDS = 5.0
"""How long an orderly end may take. After that the process ends as it is."""


@dataclass(slots=True)
class _Running:
    """What the probes look at."""

    election: Election | None = None
    leader: Leader | None = None
    crds_missing: bool = False
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``pointsman-operator``."""
    parser = argparse.ArgumentParser(
        prog="pointsman-operator",
        description="Runs ModelPools and RoutePolicies on Kubernetes. Settings come from "
        "environment variables POINTSMAN_OPERATOR_…",
    )
    parser.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="how to reach the cluster from outside; default: KUBECONFIG, else the pod's account",
    )
    options = parser.parse_args(arguments)
    try:
        settings, process = settings_from(os.environ), process_settings_from(os.environ)
    except ValueError as error:
        print(f"pointsman-operator: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    configure_logs(process.log_level)
    # What a start leaves behind lives for ever: not looking at it saves time at each collection.
    gc.collect()
    gc.freeze()
    code = asyncio.run(run(settings, process, kubeconfig=options.kubeconfig))
    # kopf and aiohttp may keep threads or sockets; nothing of theirs is worth waiting for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def run(
    settings: OperatorSettings, process: ProcessSettings, *, kubeconfig: str | None
) -> int:
    """Run until a signal, the loss of the lease or a failure; returns the exit code."""
    metrics, pulse, running = OperatorMetrics(), Pulse(), _Running()
    _on_signals(running.stopping)
    try:
        kube = await Kube.connect(kubeconfig, field_manager=FIELD_MANAGER, on_call=metrics.called)
    except ConfigurationError as error:
        log.error("cannot start", cause=str(error))
        return EXIT_USAGE
    async with kube, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(
            serve_health(
                host=process.listen_host or None,
                port=process.listen_port,
                metrics=metrics,
                unhealthy=lambda: _unhealthy(running, pulse, process),
                unready=lambda: _unready(running),
            )
        )
        stack.push_async_callback(end_task, asyncio.create_task(pulse.run(), name="pulse"))
        if not await _until_crds_known(kube, running):
            return EXIT_OK if running.stopping.is_set() else EXIT_USAGE
        owner = await _until_owner_known(kube, settings, running)
        # Renewals must get through even when everything else may not write any more.
        lease_kube = Kube(
            kube.configuration,
            field_manager=FIELD_MANAGER,
            on_call=metrics.called,
            timeout_seconds=process.retry_seconds * 2,
            attempts=1,
        )
        stack.push_async_callback(lease_kube.close)
        election = running.election = Election(
            lease_kube,
            namespace=settings.namespace,
            name=process.lease_name,
            identity=process.identity,
            times=process.lease_times,
            owner=owner,
        )
        kube.fence(lambda: election.leads)
        if not await _first(election.win(), running.stopping.wait()):
            return EXIT_OK
        return await _lead(kube, settings, process, metrics, running, election, owner)


async def _lead(
    kube: Kube,
    settings: OperatorSettings,
    process: ProcessSettings,
    metrics: OperatorMetrics,
    running: _Running,
    election: Election,
    owner: Owner | None,
) -> int:
    leader = running.leader = Leader(
        kube, settings=settings, process=process, metrics=metrics, owner=owner
    )
    metrics.watch(lambda: leader.queues, leader.all_mirrors, lambda: election.leads)
    stop_kopf = asyncio.Event()
    tasks = {
        "lease": asyncio.create_task(election.hold(), name="lease"),
        "leader": asyncio.create_task(leader.run(), name="leader"),
        "stop": asyncio.create_task(running.stopping.wait(), name="stop"),
    }
    # kopf ends every task that was started after it: it comes last.
    await asyncio.sleep(0)
    tasks["kopf"] = asyncio.create_task(_run_kopf(kube, leader, stop_kopf), name="kopf")
    # kopf takes the signals for itself when it starts.
    await asyncio.sleep(0.05)
    _on_signals(running.stopping)
    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    code = EXIT_OK
    for name, task in tasks.items():
        if task.done() and name != "stop":
            code = EXIT_FAILED
            failure = None if task.cancelled() else task.exception()
            log.error("ended, and with it the process", part=name, exc_info=failure)
    stop_kopf.set()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            # First nobody writes any more, then the lease goes to the next.
            await end_task(tasks["leader"])
            tasks["lease"].cancel()
            await election.release()
            await asyncio.wait([tasks["kopf"]], timeout=1.0)
    except TimeoutError:
        log.warning("not everything ended in time")
    log.info("ended", code=code)
    return code


async def _run_kopf(kube: Kube, leader: Leader, stop: asyncio.Event) -> None:
    await kopf.operator(
        registry=operator_registry(leader.store, kube.configuration),
        settings=operator_settings(),
        clusterwide=True,
        standalone=True,
        # kopf would ask the system for the name of its user, and in a container there is none.
        identity=cast("Any", "pointsman-operator"),
        stop_flag=stop,
    )


async def _until_crds_known(kube: Kube, running: _Running) -> bool:
    """Whether our CRDs are there; an API server that is away is waited for."""
    while not running.stopping.is_set():
        try:
            missing = [
                kind.resource for kind in (MODEL_POOL, ROUTE_POLICY) if not await kube.serves(kind)
            ]
        except KubeError as error:
            await _try_again_soon(running, error)
            continue
        if missing:
            running.crds_missing = True
            log.error(
                "cannot start: the cluster does not know " + " and ".join(missing),
                next_step="kubectl apply --server-side -f crds/modelpools.yaml "
                "-f crds/routepolicies.yaml (or install the chart with crds.enabled=true)",
            )
            return False
        return True
    return False


async def _until_owner_known(
    kube: Kube, settings: OperatorSettings, running: _Running
) -> Owner | None:
    """What owns the Lease and all that is written beside it: also one that waits may make it."""
    while not running.stopping.is_set():
        try:
            return await read_owner(
                kube, namespace=settings.namespace, deployment=settings.deployment
            )
        except KubeError as error:
            await _try_again_soon(running, error)
    return None


async def _try_again_soon(running: _Running, error: KubeError) -> None:
    log.warning("the API server does not answer", cause=str(error))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            await running.stopping.wait()


def _unhealthy(running: _Running, pulse: Pulse, process: ProcessSettings) -> Iterable[str]:
    yield from pulse.problems()
    leader = running.leader
    if leader is None:
        return
    for mirror in leader.all_mirrors():
        if mirror.age_seconds > process.frozen_seconds:
            yield f"the watch of {mirror.kind.resource} is silent for {mirror.age_seconds:.0f} s"
    yield from leader.sweeper.problems()


def _unready(running: _Running) -> Iterable[str]:
    """One that waits for its turn is ready: it does what it is there for."""
    if running.crds_missing:
        yield "the CRDs are not installed"
    elif running.election is None:
        yield "the API server has not answered yet"
    elif running.election.leads and running.leader is not None:
        leader = running.leader
        refused = [mirror.refused for mirror in leader.mirrors if mirror.refused]
        if waiting := leader.mirrors.unanswered:
            why = f" ({'; '.join(refused)})" if refused else ""
            yield f"no list yet of {', '.join(waiting)}{why}"
        elif not leader.sweeper.synced:
            yield "not all ModelPools and RoutePolicies are known yet"


async def _first(wanted: Coroutine[Any, Any, Any], other: Coroutine[Any, Any, Any]) -> bool:
    """Run both until one ends; whether it was the wanted one."""
    tasks = [asyncio.create_task(wanted), asyncio.create_task(other)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task not in done:
            await end_task(task)
    if tasks[0] in done:
        tasks[0].result()
    return tasks[0] in done


def _on_signals(stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
