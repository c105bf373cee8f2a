"""The API keys of external pools, read from where they are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pointsman_api.route_table import CredentialReference, PoolEntry


class CredentialError(ValueError):
    """A key cannot be read; says which, from where, and what to do."""


class Credentials:
    """Finds each pool's key.

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
        if not value.isascii() or not value.isprintable():
            raise CredentialError(
                f"pool {pool.name}: the API key of {source} has characters that no HTTP header "
                "can carry; it must be printable ASCII on one line"
            )
        return value

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
