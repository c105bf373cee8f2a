"""A Ray cluster of one machine: started, reached and ended by one object.

Everything listens on the host that is given, 127.0.0.1 by default, with one exception that Ray
offers no setting for: each Serve replica opens a port for calls from other Serve deployments on
all interfaces. It refuses calls without the cluster's token.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pointsman_serving.cluster.serve_api import ServeApi, ServeApiError
from pointsman_serving.engines.application import serve_config
from pointsman_serving.engines.load_lock import LOAD_LOCK_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pointsman_serving.engines.serve_listing import PoolStatus, ReplicaStatus

START_TIMEOUT_SECONDS = 180.0
STOP_TIMEOUT_SECONDS = 10.0
FEW_CORES = 4
"""Below this many, engines take turns to load."""
REPLICA_PORTS = 400
"""Ports that Serve may give to replicas; it does not reuse one for minutes."""
_OBJECT_STORE_BYTES = 80_000_000
_SOCKET_PATH_ROOM = 40
"""Characters that a session's folder may take so that the paths of its sockets fit 107."""


class LocalRayError(RuntimeError):
    """Ray did not start, or has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRaySettings:
    """How a local cluster is started."""

    host: str = "127.0.0.1"
    """Address that everything listens on, the replicas' ports too."""
    cpus: int = 32
    """Processors that Ray counts with; replicas take 1 each unless their pool says otherwise.
    More than the machine has lets replicas share cores."""
    gpus: int | None = None
    """GPUs that Ray counts with; None: it looks."""
    min_drain_seconds: float = 5.0
    """How long a stopping replica serves on at least. Gateways must re-list within this time."""
    python_path: tuple[Path, ...] = ()
    """Folders that replicas import from, before their own environment's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables of every Ray process and replica."""


class LocalRay:
    """A running cluster; use as an async context manager, or call :meth:`stop`."""

    def __init__(
        self,
        guard: subprocess.Popen[bytes],
        folder: Path,
        *,
        address: str,
        dashboard_url: str,
        token: str,
        host: str,
        proxy_port: int,
    ) -> None:
        self.address = address
        """Of the cluster's control service: ``host:port``."""
        self.dashboard_url = dashboard_url
        self.token = token
        """What Ray's REST API wants as bearer token."""
        self.logs = folder / "session_latest" / "logs"
        """Ray's logs; those of replicas are below ``serve``."""
        self._guard = guard
        self._folder = folder
        self._host = host
        self._proxy_port = proxy_port
        self._api = ServeApi(dashboard_url, token=token)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    @property
    def running(self) -> bool:
        """Whether Ray's processes are there."""
        return self._guard.poll() is None

    async def deploy(self, applications: Sequence[Mapping[str, object]]) -> None:
        """Make these applications the wanted ones; returns before they serve.

        Raises:
            ServeApiError: Ray found the configuration wrong, or is not there.
        """
        await self._api.deploy(
            serve_config(applications, host=self._host, proxy_port=self._proxy_port)
        )

    async def status(self) -> dict[str, PoolStatus]:
        """The pools' applications by name.

        Raises:
            LocalRayError: Ray has ended.
            ServeApiError: Ray does not answer.
        """
        if not self.running:
            raise LocalRayError(f"Ray has ended: its logs are in {self.logs}")
        return await self._api.status()

    def log_tail(self, log_file: str, lines: int = 40) -> str:
        """The last lines of a file below :attr:`logs`, or an empty text if there is none."""
        try:
            text = (self.logs / log_file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def replica_log(self, replica: ReplicaStatus, lines: int = 40) -> str:
        """The last lines that a replica wrote, its engine's too: Serve keeps a log of its own,
        and everything else is in that of the process."""
        names = [replica.log_file] if replica.log_file else []
        if replica.pid is not None and self.logs.is_dir():
            names += sorted(path.name for path in self.logs.glob(f"worker-*-{replica.pid}.*"))
        return "\n".join(filter(None, (self.log_tail(name, lines) for name in names)))

    async def stop(self, *, keep_logs: bool = False) -> None:
        """End every process of the cluster, requests and all, and remove its folder."""
        await self._api.close()
        if self.running:
            self._guard.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._guard.wait, STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._guard.kill()
                await asyncio.to_thread(self._guard.wait)
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        if keep_logs:
            (self._folder / "token").unlink(missing_ok=True)
        else:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


async def start_local_ray(settings: LocalRaySettings | None = None) -> LocalRay:
    """Start a cluster and wait until its REST API answers.

    It ends with :meth:`LocalRay.stop`, or when this process ends in whatever way.

    Raises:
        LocalRayError: Ray ended or did not answer in time; the message has the end of its output.
    """
    settings = settings or LocalRaySettings()
    folder = _session_folder()
    token = secrets.token_hex(32)
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    control, dashboard, client, agent, proxy = free_ports(settings.host, 5)
    output = folder / "ray.log"
    guard = _start_guard(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            f"--node-ip-address={settings.host}",
            f"--port={control}",
            f"--dashboard-host={settings.host}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
            # Any free port, where Ray's own range may be taken by another cluster.
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--num-cpus={settings.cpus}",
            *([] if settings.gpus is None else [f"--num-gpus={settings.gpus}"]),
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={folder}",
            "--include-log-monitor=false",
            "--disable-usage-stats",
        ],
        environment=_environment(settings, folder, token_file),
        output=output,
    )
    ray = LocalRay(
        guard,
        folder,
        address=f"{settings.host}:{control}",
        dashboard_url=f"http://{settings.host}:{dashboard}",
        token=token,
        host=settings.host,
        proxy_port=proxy,
    )
    try:
        await asyncio.wait_for(_until_answering(ray), START_TIMEOUT_SECONDS)
    except BaseException as error:
        said = output.read_text(encoding="utf-8", errors="replace")[-2000:].strip()
        await ray.stop()
        if isinstance(error, TimeoutError):
            raise LocalRayError(
                f"Ray did not answer within {START_TIMEOUT_SECONDS:.0f} s. It said: {said}"
            ) from error
        if isinstance(error, LocalRayError):
            raise LocalRayError(f"{error} It said: {said}") from error
        raise
    return ray


def _start_guard(
    command: list[str], *, environment: Mapping[str, str], output: Path
) -> subprocess.Popen[bytes]:
    """Start a command whose processes end when the pipe to it closes."""
    with output.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pointsman_serving.cluster.guard", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C in a terminal goes to its whole process group: this one ends when it is told.
            start_new_session=True,
        )


def free_ports(host: str, count: int) -> list[int]:
    """Distinct ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]


async def _until_answering(ray: LocalRay) -> None:
    while True:
        if not ray.running:
            raise LocalRayError("Ray ended while it started.")
        try:
            await ray.status()
        except ServeApiError:
            await asyncio.sleep(0.2)
        else:
            return


def _session_folder() -> Path:
    parent = tempfile.gettempdir()
    if len(parent) + len("/pm-ray-12345678") > _SOCKET_PATH_ROOM:
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="pm-ray-", dir=parent))


def _environment(settings: LocalRaySettings, folder: Path, token_file: Path) -> dict[str, str]:
    first_port = random.randrange(20_000, 32_000 - REPLICA_PORTS)
    environment = dict(os.environ)
    for name in [name for name in environment if name.startswith(("RAY_", "SERVE_"))]:
        del environment[name]
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_port + REPLICA_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(settings.min_drain_seconds),
        # Requests come to the replicas past Serve's handles, so only replicas can count them.
        "RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE": "0",
        "PYTHONUNBUFFERED": "1",
    }
    if settings.host in ("127.0.0.1", "localhost", "::1"):
        # Ray replaces a loopback address by the machine's own unless clusters are off, as they
        # are by default on Windows and macOS; the variable's name only tells of that origin.
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    cores = len(os.sched_getaffinity(0))
    if cores < FEW_CORES:
        environment[LOAD_LOCK_VARIABLE] = f"{cores}:{folder}"
    paths = [str(path) for path in settings.python_path]
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(
            [*paths, *filter(None, [environment.get("PYTHONPATH")])]
        )
    return environment | dict(settings.environment)
