"""Who answers: two headers by which a gateway tells replicas, and their restarts, apart."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from pointsman_serving.engines.openai_errors import error_body, send_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

INSTANCE_HEADER = b"x-pointsman-instance"
REVISION_HEADER = b"x-pointsman-revision"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaIdentity:
    """One start of one engine."""

    revision: str
    """What it says: see :func:`~pointsman_serving.engines.revision.token_revision`."""
    instance: str
    """16 hex digits, new at each start: what another instance had cached is gone."""

    @classmethod
    def new(cls, revision: str) -> ReplicaIdentity:
        """The identity of an engine that starts now."""
        return cls(revision=revision, instance=secrets.token_hex(8))


class IdentityHeaders:
    """ASGI middleware that names the replica in every reply.

    A request with ``x-pointsman-revision`` wants exactly that revision: another one answers 409
    and does nothing.
    """

    def __init__(self, app: ASGIApp, identity: ReplicaIdentity) -> None:
        """Wrap an application."""
        self._app = app
        self._revision = identity.revision
        self._headers = [
            (INSTANCE_HEADER, identity.instance.encode()),
            (REVISION_HEADER, identity.revision.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        for name, value in scope["headers"]:
            if name == REVISION_HEADER and value.decode("latin-1").strip() != self._revision:
                await self._refuse(value.decode("latin-1"), send_named)
                return
        await self._app(scope, receive, send_named)

    async def _refuse(self, wanted: str, send: Send) -> None:
        message = (
            f"the request wants the revision {wanted[:64]!r} and this replica serves "
            f"{self._revision!r}: send it to a replica of that revision, or leave "
            f"{REVISION_HEADER.decode()} out"
        )
        document = error_body(
            message, status=HTTPStatus.CONFLICT, kind="ConflictError", code="revision_mismatch"
        )
        await send_error(send, HTTPStatus.CONFLICT, document)
