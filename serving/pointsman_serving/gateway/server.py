"""One gateway: its data plane, its HTTP server and the sources of its replicas."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Sequence
from types import FrameType

import structlog
import uvicorn

from pointsman_api.route_table import RouteTable
from pointsman_serving.gateway.admin import serving_admin
from pointsman_serving.gateway.app import create_app
from pointsman_serving.gateway.credentials import Credentials, PoolSecrets
from pointsman_serving.gateway.descriptors import raise_limit
from pointsman_serving.gateway.discovery import ReplicaSource
from pointsman_serving.gateway.hot import hot_protocol
from pointsman_serving.gateway.metrics import Metrics
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.gateway.request_ids import RequestIds
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.gateway.version import installed_version
from pointsman_serving.gateway.vigil import Vigil
from pointsman_serving.routing.scheduler import Scheduler

log = structlog.get_logger(__name__)

_BACKLOG = 2048

# For the last bytes of replies that were cut when the drain was over.
_FLUSH_SECONDS = 1.0


class ListenError(OSError):
    """The gateway cannot listen where it was told to; says why and what to do."""


class _Server(uvicorn.Server):
    """uvicorn's server, which with ``signals`` ends gracefully on SIGINT and SIGTERM.

    uvicorn itself raises the signal again when it has ended, which would end the process before
    the streams that outlast the drain have got their error event.
    """

    def __init__(self, config: uvicorn.Config, plane: DataPlane, *, signals: bool) -> None:
        super().__init__(config)
        self._plane = plane
        self._signals = signals
        self._exit = asyncio.Event()
        self._at_once = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end on a signal; end at once on a second one."""
        if not self.should_exit:
            self.stop()
        else:
            self.force_exit = True
            self._at_once.set()

    def stop(self) -> None:
        """Begin to end."""
        self.should_exit = True
        self._plane.ending = True
        self._exit.set()

    async def main_loop(self) -> None:
        """Wait for the end; there is nothing to look after ten times a second.

        Whoever balances load among gateways needs time to notice: until it is over new
        connections are served as before.
        """
        await self._exit.wait()
        lame_duck_seconds = self._plane.settings.lame_duck_seconds
        if lame_duck_seconds > 0.0:
            log.info("gateway ends", lame_duck_seconds=lame_duck_seconds)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._at_once.wait(), lame_duck_seconds)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Listen to signals on the loop, without touching them otherwise."""
        if not self._signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for signal_ in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_, self.handle_exit, signal_, None)
        try:
            yield
        finally:
            for signal_ in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(signal_)

    async def flush(self, seconds: float) -> None:
        """Wait until the connections that are closing have sent what they hold."""
        until = asyncio.get_running_loop().time() + seconds
        while self.server_state.connections and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)


class Gateway:
    """A gateway in this process, on the running event loop.

    ``async with gateway.running(sources)`` for a part of a program, ``await
    gateway.serve(sources)`` for all of one.

    Args:
        settings: where to listen, and limits.
        table: what to route; replace it at any time with ``set_table``. None: somebody will tell,
            and until then the gateway is not ready.
        credentials: what requests to pools have to show.
        seed: of every random choice of the scheduler.
    """

    def __init__(
        self,
        *,
        settings: GatewaySettings,
        table: RouteTable | None,
        credentials: PoolSecrets | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings
        self.scheduler = Scheduler(table or RouteTable(), seed=seed, asks_health=True)
        self.metrics = Metrics(version=installed_version(), max_values=settings.max_label_values)
        self._table = table
        self._config_hash = ""
        self._credentials: PoolSecrets = credentials or Credentials()
        self._plane: DataPlane | None = None
        self._server: _Server | None = None
        self._socket: socket.socket | None = None
        self._admin_socket: socket.socket | None = None

    @property
    def plane(self) -> DataPlane:
        """The data plane of the running gateway.

        Raises:
            RuntimeError: the gateway is not running.
        """
        if self._plane is None:
            raise RuntimeError("the gateway is not running")
        return self._plane

    @property
    def listening(self) -> bool:
        """Whether requests are taken."""
        return self._server is not None and self._server.started

    @property
    def port(self) -> int:
        """The port that it listens on.

        Raises:
            RuntimeError: the gateway is not running.
        """
        if self._socket is None:
            raise RuntimeError("the gateway is not running")
        return int(self._socket.getsockname()[1])

    @property
    def admin_port(self) -> int:
        """The admin port that it listens on.

        Raises:
            RuntimeError: the gateway is not running, or has no admin port.
        """
        if self._admin_socket is None:
            raise RuntimeError("the gateway has no admin port, or is not running")
        return int(self._admin_socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The endpoint's address, without ``/v1``."""
        host = self.settings.host
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{_authority(shown)}:{self.port}"

    def set_table(self, table: RouteTable, config_hash: str = "") -> None:
        """Put another route table in force; ``config_hash`` is its writer's name for it."""
        self._table, self._config_hash = table, config_hash
        if self._plane is not None:
            self._plane.set_table(table, config_hash)

    def stop(self) -> None:
        """Begin a graceful stop: no new connections, replies in flight end first."""
        if self._server is not None:
            self._server.stop()

    async def serve(self, sources: Iterable[ReplicaSource], *, signals: bool = True) -> None:
        """Serve until ``stop`` is called or, with ``signals``, SIGINT or SIGTERM comes.

        Raises:
            ListenError: the address is taken, or not ours.
        """
        raise_limit()
        host, admin_port = self.settings.host, self.settings.admin_port
        with contextlib.ExitStack() as listeners:
            listener = self._socket = listeners.enter_context(listen(host, self.settings.port))
            if admin_port is not None:
                self._admin_socket = listeners.enter_context(listen(host, admin_port))
            try:
                await self._serve(listener, sources, signals=signals)
            finally:
                self._plane = self._server = self._socket = self._admin_socket = None

    async def _serve(
        self, listener: socket.socket, sources: Iterable[ReplicaSource], *, signals: bool
    ) -> None:
        plane = self._start_plane()
        server = self._server = self._make_server(plane, signals=signals)
        vigil = self._vigil(plane)
        tasks = [_supervised(vigil.run, "the vigil over replicas")]
        tasks += [_supervised(_following(each, plane), "a source of replicas") for each in sources]
        # The admin port answers until the last reply has ended: a drain is watched there.
        async with serving_admin(plane, self._admin_socket):
            running = [asyncio.ensure_future(task) for task in tasks]
            try:
                log.info(
                    "gateway listens",
                    url=self.url,
                    admin_port=None if self._admin_socket is None else self.admin_port,
                    config=plane.config_hash,
                )
                await server.serve(sockets=[listener])
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                plane.stop()
                await server.flush(_FLUSH_SECONDS)

    @contextlib.asynccontextmanager
    async def running(self, sources: Sequence[ReplicaSource] = ()) -> AsyncIterator[Gateway]:
        """Serve while the block runs, without touching signals.

        Raises:
            ListenError: the address is taken, or not ours.
        """
        task = asyncio.ensure_future(self.serve(sources, signals=False))
        try:
            while not self.listening:
                if task.done():
                    await task
                await asyncio.sleep(0.005)
            yield self
        finally:
            self.stop()
            await task

    def _start_plane(self) -> DataPlane:
        ids = random.SystemRandom()
        plane = DataPlane(
            settings=self.settings,
            table=self._table,
            scheduler=self.scheduler,
            credentials=self._credentials,
            metrics=self.metrics,
            loop=asyncio.get_running_loop(),
            new_id=lambda: f"{ids.getrandbits(128):032x}",
        )
        plane.config_hash = self._config_hash or plane.config_hash
        plane.start()
        self._plane = plane
        return plane

    def _vigil(self, plane: DataPlane) -> Vigil:
        return Vigil(
            plane.upstreams,
            self.scheduler,
            self.metrics,
            silence_seconds=self.settings.silence_seconds,
            probe_seconds=self.settings.probe_seconds,
            woken=plane.dispatcher.wake_soon,
            clock=plane.clock,
        )

    def _make_server(self, plane: DataPlane, *, signals: bool) -> _Server:
        config = uvicorn.Config(
            RequestIds(create_app(plane), plane.new_id),
            http=hot_protocol(plane),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            # The routed replies carry the engine's; the ASGI paths need none.
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(self.settings.keep_alive_seconds),
            timeout_graceful_shutdown=int(self.settings.drain_seconds),
        )
        return _Server(config, plane, signals=signals)


def _following(source: ReplicaSource, plane: DataPlane) -> Callable[[], Awaitable[None]]:
    return lambda: source.run(lambda: plane.table, plane.set_replicas)


async def _supervised(work: Callable[[], Awaitable[None]], name: str) -> None:
    """Begin the work again whenever it ends."""
    while True:
        try:
            await work()
        except Exception:
            # What is known stays; what fails once must not end for good.
            log.exception(f"{name} failed; it starts again in a second")
        await asyncio.sleep(1.0)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one.

    Raises:
        ListenError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(
            error.errno,
            f"the gateway cannot listen on {_authority(host)}:{port} ({error.strerror}); this "
            "machine has no such addresses: listen on one of the other family",
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            # Everybody, whatever the machine's default is: clusters of both families use both.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        step = (
            "stop what uses the port, or choose another one"
            if taken
            else "listen on an address of this machine, such as 127.0.0.1, 0.0.0.0 or ::"
        )
        where = f"{_authority(host)}:{port}"
        raise ListenError(
            error.errno, f"the gateway cannot listen on {where} ({error.strerror}); {step}"
        ) from error
    return listener


def _authority(host: str) -> str:
    return f"[{host}]" if ":" in host else host
