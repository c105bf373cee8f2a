"""The tokens that replicas of our own ask for: a header line for each pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from pointsman_api.labels import REPLICA_TOKEN_HEADER
from pointsman_api.route_table import BackendType, PoolEntry
from pointsman_serving.gateway.credentials import CredentialError, PoolSecrets

log = structlog.get_logger(__name__)


class ReplicaTokens:
    """The header lines of the pools that Ray Serve runs; nobody else's pods get a token.

    A token that was there and is not any more stays while its pool does: its replicas have it
    from their start on.
    """

    def __init__(self, credentials: PoolSecrets) -> None:
        self._credentials = credentials
        self._lines: dict[str, bytes] = {}
        self._problems: dict[str, str] = {}

    def refresh(self, pools: Iterable[PoolEntry]) -> Mapping[str, bytes]:
        """Read all tokens again; returns the lines by pool."""
        lines: dict[str, bytes] = {}
        problems: dict[str, str] = {}
        for pool in pools:
            if pool.backend is not BackendType.RAY_SERVE:
                continue
            token = None
            try:
                token = self._credentials.token(pool)
            except CredentialError as error:
                problems[pool.name] = str(error)
            if token is not None:
                lines[pool.name] = f"{REPLICA_TOKEN_HEADER}: {token}\r\n".encode("ascii")
            elif pool.name in self._lines:
                lines[pool.name] = self._lines[pool.name]
        for name, cause in problems.items():
            if self._problems.get(name) != cause:
                log.error("the token of a pool's replicas cannot be used", cause=cause)
        self._problems = problems
        self._lines = lines
        return lines

    def has(self, pool: str) -> bool:
        """Whether there is one for a pool."""
        return pool in self._lines
