"""What runs inside a Ray Serve replica: one engine behind the replica's own HTTP port.

Serve pickles what it deploys by value where it is defined in a function, so nothing here closes
over state: the class is found through this module, its arguments are JSON.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ray import serve

from pointsman_serving.engines.application import DEPLOYMENT_NAME
from pointsman_serving.engines.engine import EngineFailedError
from pointsman_serving.engines.front import ReplicaFront
from pointsman_serving.engines.identity import ReplicaIdentity
from pointsman_serving.engines.load_lock import turn_to_load
from pointsman_serving.engines.options import ReplicaOptions
from pointsman_serving.engines.ray_group import RayGroup
from pointsman_serving.engines.route_prefix import rebased
from pointsman_serving.engines.start import start_engine

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pointsman_serving.engines.engine import Engine

_LOG = logging.getLogger("ray.serve")

HEALTH_PATH = "/-/healthz"


class Replica:
    """One engine. Ray Serve makes it, asks for its application and checks its health."""

    def __init__(self, args: dict[str, Any]) -> None:
        """Take the options; the engine is loaded when Serve asks for the application."""
        self.options = ReplicaOptions.from_args(args)
        self.engine: Engine | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Load the engine, in the machine's turn, and return what serves it."""
        # First: a mistake in it should not cost the time that weights take.
        front = ReplicaFront.of(os.environ)
        place = None
        if self.options.hosts > 1:
            place = await RayGroup(self.options, busy=lambda: front.open_requests.count > 0).start()
        async with turn_to_load():
            self.engine = await start_engine(self.options, place)
        identity = ReplicaIdentity.new(self.options.revision)
        return front.before(ReplicaApp(self.engine), identity)

    async def check_health(self) -> None:
        """Serve calls this every few seconds: a dead engine makes it replace the replica."""
        if self.engine is not None:
            await self.engine.check_health()


class ReplicaApp:
    """Rebases requests from the application's route prefix to the engine's own root."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        inner = rebased(scope)
        if inner["type"] == "http" and inner["path"] == HEALTH_PATH:
            await self._healthz(send)
            return
        await self._engine.app(inner, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_when_closed(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self._engine.close()
            await send(message)

        await self._engine.app(scope, receive, send_when_closed)

    async def _healthz(self, send: Send) -> None:
        status, body = 200, b"success"
        try:
            await self._engine.check_health()
        except EngineFailedError as error:
            status, body = 503, str(error).encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def build(args: dict[str, Any]) -> Any:
    """The Ray Serve application; ``import_path`` of every pool's configuration.

    Args:
        args: what :meth:`ReplicaOptions.to_args` wrote.

    Raises:
        ValueError: the arguments are not those of a replica.
    """
    ReplicaOptions.from_args(args)
    ingress: Any = serve.ingress()
    deployment: Any = serve.deployment(name=DEPLOYMENT_NAME)
    return deployment(ingress(Replica)).bind(args)
