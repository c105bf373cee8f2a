"""What every engine offers to the replica that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class EngineFailedError(RuntimeError):
    """The engine serves nothing any more; only a new replica helps."""


class Engine(Protocol):
    """A loaded model with its OpenAI-compatible application."""

    @property
    def app(self) -> ASGIApp:
        """Serves ``/v1/…``, ``/health`` and ``/metrics``, with paths as if mounted at the root."""

    async def check_health(self) -> None:
        """Return while the engine serves.

        Raises:
            EngineFailedError: it never will again.
        """

    async def close(self) -> None:
        """End the engine and its processes. Nothing may be running on it."""
