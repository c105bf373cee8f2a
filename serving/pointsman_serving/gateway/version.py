"""The version that the gateway reports."""

from __future__ import annotations

from importlib import metadata


def installed_version() -> str:
    """Pointsman's version; ``unknown`` where it runs from files that were never installed."""
    try:
        return metadata.version("pointsman")
    except metadata.PackageNotFoundError:
        return "unknown"
