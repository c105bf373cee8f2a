"""The connections to all replicas: kept alive per replica, made when there is none."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog

from pointsman_serving.gateway.connection import Exchange, UpstreamConnection
from pointsman_serving.gateway.descriptors import lacking
from pointsman_serving.gateway.endpoint import Endpoint
from pointsman_serving.routing.types import ReplicaAddress

log = structlog.get_logger(__name__)


class Upstreams:
    """The connections to all replicas.

    Args:
        idle_seconds: an idle connection is not used after this, and closed soon.
        idle_connections: how many idle ones are kept for one replica.
        clock: seconds; monotonic.
    """

    def __init__(
        self, *, idle_seconds: float, idle_connections: int, clock: Callable[[], float]
    ) -> None:
        self._idle_seconds = idle_seconds
        self._idle_connections = idle_connections
        self._clock = clock
        self._endpoints: dict[ReplicaAddress, Endpoint] = {}
        self._idle: dict[Endpoint, list[UpstreamConnection]] = {}
        self._leaving: set[Endpoint] = set()
        """Endpoints that are no longer listed and still have replies under way."""
        self._open: set[UpstreamConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None
        self.announced: Callable[[ReplicaAddress, bytes], None] = _unheard
        """Told by a reply where its replica publishes its KV cache events."""
        self._token_lines: Mapping[str, bytes] = {}

    @property
    def open_connections(self) -> int:
        """Connections to replicas, in use or idle."""
        return len(self._open)

    def endpoint(self, address: ReplicaAddress) -> Endpoint:
        """The endpoint of an address; the same one each time."""
        endpoint = self._endpoints.get(address)
        if endpoint is None:
            token_line = self._token_lines.get(address.key.pool, b"")
            endpoint = self._endpoints[address] = Endpoint(address, token_line=token_line)
            self._idle[endpoint] = []
        return endpoint

    def set_token_lines(self, lines: Mapping[str, bytes]) -> None:
        """The header lines with the replicas' tokens, by pool, for requests from now on."""
        self._token_lines = lines
        for address, endpoint in self._endpoints.items():
            endpoint.token_line = lines.get(address.key.pool, b"")

    def connect(
        self, endpoint: Endpoint, exchange: Exchange, *, timeout_seconds: float, fresh: bool
    ) -> asyncio.Task[None] | None:
        """Give ``exchange`` a connection: a kept one at once, else a new one later.

        Args:
            fresh: do not take a kept one.

        Returns:
            The task that connects; cancel it to give up. None where ``connected`` was called.
        """
        if not fresh:
            horizon = self._clock() - self._idle_seconds
            idle = self._idle.get(endpoint, [])
            while idle:
                connection = idle.pop()
                if connection.usable and connection.idle_since > horizon:
                    exchange.connected(connection)
                    return None
                connection.abandon()
        task = asyncio.get_running_loop().create_task(
            self._connect(endpoint, exchange, timeout_seconds)
        )
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return task

    async def _connect(
        self, endpoint: Endpoint, exchange: Exchange, timeout_seconds: float
    ) -> None:
        address = endpoint.address
        connection = UpstreamConnection(self, endpoint)
        made = False
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    address.host,
                    address.port,
                    ssl=self._tls_context() if address.tls else None,
                    server_hostname=address.host if address.tls else None,
                )
            made = True
        except TimeoutError:
            exchange.connect_failed(f"no connection within {timeout_seconds:g} s", lacking=False)
        except (OSError, UnicodeError) as error:
            cause = getattr(error, "strerror", None) or error
            if lacking(error):
                exchange.connect_failed(f"the gateway cannot connect ({cause})", lacking=True)
            else:
                exchange.connect_failed(f"cannot connect ({cause})", lacking=False)
        else:
            exchange.connected(connection)
        finally:
            if not made:
                # uvloop tells nobody that it closes what is given up just when it is there.
                self._open.discard(connection)

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def opened(self, connection: UpstreamConnection) -> None:
        """Called by a connection that is there."""
        self._open.add(connection)

    def closed(self, connection: UpstreamConnection) -> None:
        """Called by a connection that is gone."""
        self._open.discard(connection)
        idle = self._idle.get(connection.endpoint, [])
        if connection in idle:
            idle.remove(connection)

    def keep(self, connection: UpstreamConnection) -> None:
        """Called by a connection whose reply is whole."""
        idle = self._idle.get(connection.endpoint)
        if idle is None or len(idle) >= self._idle_connections:
            connection.abandon()
            return
        connection.idle_since = self._clock()
        idle.append(connection)

    def retain(self, pool: str, addresses: Iterable[ReplicaAddress]) -> None:
        """Forget the endpoints of a pool that are not among ``addresses``; exchanges go on."""
        kept = set(addresses)
        for address in [a for a in self._endpoints if a.key.pool == pool and a not in kept]:
            endpoint = self._endpoints.pop(address)
            self._close_all(self._idle.pop(endpoint))
            self._leaving.add(endpoint)

    def endpoints(self) -> Iterator[Endpoint]:
        """The endpoints that are known, and those that are not any more but have work."""
        self._leaving = {endpoint for endpoint in self._leaving if endpoint.busy}
        yield from self._endpoints.values()
        yield from self._leaving

    def lose(self, endpoint: Endpoint, reason: str) -> None:
        """Close every connection to an endpoint that is gone; whoever waits there is told."""
        self._close_all(list(self._idle.get(endpoint, ())))
        for connection in list(endpoint.busy):
            try:
                connection.lose(reason)
            except Exception:
                # One request must not keep the others on a dead replica.
                log.exception("request failed on a lost replica")

    def close_stale(self) -> None:
        """Close connections that have been idle for too long; call it every second or so."""
        horizon = self._clock() - self._idle_seconds
        for idle in self._idle.values():
            self._close_all([each for each in idle if each.idle_since <= horizon])

    def close(self) -> None:
        """Close everything at once."""
        for task in list(self._connecting):
            task.cancel()
        self._close_all(list(self._open))

    @staticmethod
    def _close_all(connections: list[UpstreamConnection]) -> None:
        for connection in connections:
            connection.abandon()


def _unheard(_address: ReplicaAddress, _value: bytes) -> None:
    """Nobody follows any events."""
