"""The pools of other providers: where they are, and which key goes to which address.

A key belongs to one (address, credential reference) and to nothing else: whatever changes in
the route table, it is never sent to an address for which it was not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from pointsman_api.route_table import BackendType, CredentialReference, PoolEntry
from pointsman_serving.gateway.credentials import CredentialError, PoolSecrets
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Usable:
    reference: CredentialReference | None
    addresses: tuple[ReplicaAddress, ...]
    line: bytes
    """The authorization header line; empty where the pool needs none."""


class ExternalPools:
    """The external pools of the table that is in force."""

    def __init__(self, credentials: PoolSecrets) -> None:
        self._credentials = credentials
        self._usable: dict[str, _Usable] = {}
        self._lines: dict[ReplicaAddress, bytes] = {}
        self._problems: dict[str, str] = {}

    def refresh(self, pools: Iterable[PoolEntry]) -> dict[str, tuple[ReplicaAddress, ...]]:
        """Read all keys again; returns the addresses of every external pool that may be used.

        A pool that refers to a key which cannot be read has none. A key that was read and
        cannot be read again stays while its reference and its addresses do.
        """
        usable: dict[str, _Usable] = {}
        problems: dict[str, str] = {}
        addresses: dict[str, tuple[ReplicaAddress, ...]] = {}
        for pool in pools:
            if pool.backend is not BackendType.EXTERNAL:
                continue
            addresses[pool.name] = ()
            try:
                found = self._read(pool, problems)
            except ValueError as error:
                problems[pool.name] = str(error)
                continue
            usable[pool.name] = found
            addresses[pool.name] = found.addresses
        for name, cause in problems.items():
            if self._problems.get(name) != cause:
                log.error(
                    "an external pool lacks its address or key", cause=cause, used=name in usable
                )
        self._problems = problems
        self._usable = usable
        self._lines = {
            address: found.line for found in usable.values() for address in found.addresses
        }
        return addresses

    def _read(self, pool: PoolEntry, problems: dict[str, str]) -> _Usable:
        addresses = external_addresses(pool)
        try:
            key = self._credentials.key(pool)
        except CredentialError as error:
            before = self._usable.get(pool.name)
            if before is None or (before.reference, before.addresses) != (
                pool.credential,
                addresses,
            ):
                raise
            problems[pool.name] = str(error)
            return before
        line = b"" if key is None else b"authorization: Bearer %s\r\n" % key.encode("ascii")
        return _Usable(reference=pool.credential, addresses=addresses, line=line)

    def authorization(self, address: ReplicaAddress) -> bytes:
        """The header line for requests to an address; empty where it gets none (any more)."""
        return self._lines.get(address, b"")

    def unusable(self, pools: Iterable[str]) -> list[str]:
        """Those of the pools that cannot be used by their operator's mistake."""
        return [name for name in pools if name in self._problems and name not in self._usable]


def external_addresses(pool: PoolEntry) -> tuple[ReplicaAddress, ...]:
    """The replicas of an external pool.

    Raises:
        ValueError: an address is no http(s) URL.
    """
    addresses: list[ReplicaAddress] = []
    for endpoint in pool.external_endpoints:
        if not (endpoint.url.isascii() and endpoint.url.isprintable() and " " not in endpoint.url):
            raise ValueError(
                f"pool {pool.name}: {endpoint.url!r} has characters that no request can carry; "
                "write the host in punycode and the path percent-encoded"
            )
        parts = urlsplit(endpoint.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"pool {pool.name}: {endpoint.url!r} is not an http or https URL, "
                "such as https://host/v1"
            )
        tls = parts.scheme == "https"
        # The name of a life: an address that stays the same keeps what was learned about it.
        name = f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        if any(other.key.replica == name for other in addresses):
            name = f"{name}:{endpoint.model_name}"
        addresses.append(
            ReplicaAddress(
                key=ReplicaKey(pool.name, name),
                host=parts.hostname,
                port=parts.port or (443 if tls else 80),
                tls=tls,
                base_path=parts.path.rstrip("/"),
                model_name=endpoint.model_name,
                sequence_slots=pool.sequence_slots,
            )
        )
    return tuple(addresses)
