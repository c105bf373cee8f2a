"""What the gateway shows to those behind it: API keys of external pools, tokens of replicas."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pointsman_api.route_table import CredentialReference, PoolEntry


class CredentialError(ValueError):
    """A key cannot be read; says which, from where, and what to do."""


class PoolSecrets(Protocol):
    """Finds what requests to a pool have to show."""

    def key(self, pool: PoolEntry) -> str | None:
        """The API key of an external pool; None where it has none.

        Raises:
            CredentialError: the key is referred to and cannot be read.
        """

    def token(self, pool: PoolEntry) -> str | None:
        """The token that the pool's replicas ask for; None where they ask for none.

        Raises:
            CredentialError: there is one, and it cannot be used.
        """


def header_value(text: str, *, pool: str, what: str) -> str:
    """The text, where a header can carry it.

    Args:
        what: is in it, for the message.

    Raises:
        CredentialError: it is not printable ASCII.
    """
    if not text.isascii() or not text.isprintable():
        raise CredentialError(
            f"pool {pool}: {what} has characters that no HTTP header can carry; it must be "
            "printable ASCII on one line"
        )
    return text


class Credentials:
    """Finds each pool's key in files and environment variables; replicas have no tokens there.

    Args:
        sources: by ``secret_name/secret_key``: ``env:NAME`` or ``file:PATH``. References with a
            path of their own need no entry.
        environment: the environment variables.
    """

    def __init__(
        self, sources: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._sources = dict(sources or {})
        self._environment = os.environ if environment is None else environment
        self._files: dict[Path, tuple[int, str]] = {}

    def key(self, pool: PoolEntry) -> str | None:
        """The pool's key; None where it has none. A changed file is read again.

        Raises:
            CredentialError: the key is referred to and cannot be read.
        """
        reference = pool.credential
        if reference is None:
            return None
        source = self._source(pool.name, reference)
        kind, _, rest = source.partition(":")
        if kind == "env":
            value = self._environment.get(rest, "").strip()
            if not value:
                raise CredentialError(
                    f"pool {pool.name}: the environment variable {rest} is empty or not set; "
                    "set it to the API key"
                )
        elif kind == "file":
            value = self._read(pool.name, Path(rest))
        else:
            raise CredentialError(
                # What it says instead may be the key itself.
                f"pool {pool.name}: the source of its credential names neither a variable nor a "
                "file; use env:NAME or file:PATH"
            )
        return header_value(value, pool=pool.name, what=f"the API key of {source}")

    def token(self, pool: PoolEntry) -> None:
        """None: what runs on this machine is reached by this machine alone."""

    def _source(self, pool: str, reference: CredentialReference) -> str:
        if reference.path:
            return f"file:{reference.path}"
        name = f"{reference.secret_name}/{reference.secret_key}"
        try:
            return self._sources[name]
        except KeyError:
            known = ", ".join(sorted(self._sources)) or "none"
            raise CredentialError(
                f"pool {pool}: the gateway has no credential {name!r} (it has: {known}); "
                "add it, or give the pool a file"
            ) from None

    def _read(self, pool: str, path: Path) -> str:
        try:
            changed = path.stat().st_mtime_ns
            seen = self._files.get(path)
            if seen is None or seen[0] != changed:
                seen = (changed, path.read_text(encoding="utf-8").strip())
                self._files[path] = seen
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialError(
                f"pool {pool}: the API key's file {path} cannot be read ({error})"
            ) from error
        if not seen[1]:
            raise CredentialError(f"pool {pool}: the API key's file {path} is empty")
        return seen[1]
