"""Which object it is, and in which version. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Key = tuple[str, str]
"""Namespace (empty where the kind has none) and name."""


def key_of(obj: Mapping[str, Any]) -> Key:
    """The key of an object of the API."""
    metadata = obj["metadata"]
    return str(metadata.get("namespace") or ""), str(metadata["name"])


def uid_of(obj: Mapping[str, Any]) -> str:
    """The uid of an object of the API; empty where it has none yet."""
    return str(obj["metadata"].get("uid") or "")


def version_of(obj: Mapping[str, Any]) -> str:
    """The resource version of an object of the API; empty where it has none yet."""
    return str(obj["metadata"].get("resourceVersion") or "")


def is_older_or_same(obj: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    """Whether an object says nothing newer than the one that is held under its key.

    Versions of one kind grow with every change (KEP-5504 makes that a promise).
    """
    if uid_of(obj) != uid_of(held):
        return False
    new, old = version_of(obj), version_of(held)
    return new == old or (new.isdigit() and old.isdigit() and int(new) < int(old))
