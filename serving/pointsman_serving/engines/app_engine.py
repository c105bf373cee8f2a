"""An engine that is all in its application: what our own engines have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.engines.engine import EngineFailedError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import ASGIApp


class AppEngine:
    """An :class:`~pointsman_serving.engines.engine.Engine` that ``app.state.engine`` runs."""

    failure: ClassVar[str]
    """What a dead engine's error says: what has ended, and where to look."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    @property
    def app(self) -> ASGIApp:
        """vLLM's API in front of the engine."""
        return self._app

    async def check_health(self) -> None:
        """Raises EngineFailedError once ``app.state.engine.alive`` is False."""
        if not self._app.state.engine.alive:
            raise EngineFailedError(self.failure)

    async def close(self) -> None:
        """Nothing outlives the requests."""
