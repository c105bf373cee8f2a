"""What can be set about a gateway."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """One gateway process. Limits of single rules live in the route table, not here.

    Raises:
        ValueError: a value is out of its range; says which and what is allowed.
    """

    name: str = "default"
    """The gateway's name; policies attach to it, and metrics and logs carry it."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 opens the endpoint to the network."""

    port: int = 8080
    """TCP port; 0 lets the system choose one (see ``Gateway.port``)."""

    admin_port: int | None = None
    """A second port, for operators, probes and Prometheus; 0 lets the system choose one (see
    ``Gateway.admin_port``). With it /status and /metrics are there, and not on ``port``."""

    max_body_bytes: int = 16 * 1024 * 1024
    """Longest request body; longer ones get 413. Bodies are held in memory until they end."""

    max_held_body_bytes: int = 1024 * 1024 * 1024
    """Request bodies held in memory, over all requests together; beyond it requests get 503."""

    max_kept_body_bytes: int = 512 * 1024 * 1024
    """Bodies kept while their streams run, over all streams together, so that they can be
    continued on another replica; beyond it a stream that breaks ends with an error event."""
    trust_fairness_header: bool = False
    """Take the share in which a request waits from x-llm-d-inference-fairness-id, where something
    in front of the gateway sets it; else it is its tenant's, for a client could invent ids."""

    max_queued_requests: int = 10_000
    """Requests that wait in the queue, over all rules together; beyond it those of the lowest
    priority get 429. Each rule has a limit of its own besides."""

    request_read_seconds: float = 30.0
    """A request's head must come within this, and its body must not pause for longer; else 408
    and the connection is closed."""

    body_read_seconds: float = 300.0
    """A request's body must come within this, whatever its pace."""

    keep_alive_seconds: float = 75.0
    """An idle client connection is closed after this. Should exceed the client's own limit,
    or clients now and then write into a connection that has just been closed."""

    upstream_idle_seconds: float = 4.0
    """An idle connection to a replica is closed after this. Must stay below the replica's own
    limit (vLLM on its own: 5 s; Ray Serve: 90 s), or requests meet closed connections and
    pay for a second connect."""

    upstream_idle_connections: int = 256
    """Idle connections kept for one replica; more are closed when their reply ends."""

    silence_seconds: float = 2.0
    """A replica with open requests that sends no byte for this long is asked for its health;
    one that does not answer twice is given up, and its requests go on elsewhere. Shorter finds
    dead replicas sooner and asks more often during long prefills."""

    probe_seconds: float = 1.0
    """How long a replica's answer about its health may take."""

    lame_duck_seconds: float = 0.0
    """How long a stop still takes new connections and requests, while /readyz says 503 and
    replies ask clients to close: load balancers need some seconds to notice. In Kubernetes 5 or
    more; 0 closes the listener at once."""

    drain_seconds: float = 600.0
    """How long a stop waits for replies in flight before they are cut with an error event."""

    retry_after_seconds: int = 1
    """Retry-After of a 503 or 429 where nothing better is known."""

    max_label_values: int = 1000
    """Distinct values of one metric label; further ones are counted under ``other``."""

    status: bool = True
    """Serve GET /status, which the operator asks every second. It names internal addresses: a
    gateway that clients of others reach directly should do without, or hide the path."""

    docs: bool = False
    """Serve the OpenAPI pages under /docs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; it must be between 0 and 65535")
        if self.admin_port is not None and not 0 <= self.admin_port <= 65535:
            raise ValueError(f"admin_port is {self.admin_port}; it must be between 0 and 65535")
        if self.port != 0 and self.admin_port == self.port:
            raise ValueError(f"admin_port is {self.admin_port}, and so is port; they must differ")
        for name in (
            "max_body_bytes",
            "max_held_body_bytes",
            "max_kept_body_bytes",
            "max_queued_requests",
            "request_read_seconds",
            "body_read_seconds",
            "keep_alive_seconds",
            "silence_seconds",
            "probe_seconds",
            "max_label_values",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in (
            "upstream_idle_seconds",
            "upstream_idle_connections",
            "lame_duck_seconds",
            "drain_seconds",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
