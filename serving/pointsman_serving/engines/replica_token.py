"""Who may ask a replica: only those that have its pool's token, where it has one.

A replica listens on a port of its own inside the cluster. Without a token whoever can reach the
port is served, past the gateways' queues, limits and counts.
"""

from __future__ import annotations

import hmac
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from pointsman_api.labels import REPLICA_TOKEN_HEADER, REPLICA_TOKEN_VARIABLE
from pointsman_serving.engines.openai_errors import error_body, send_error
from pointsman_serving.engines.route_prefix import rebased

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

_HEADER: Final = REPLICA_TOKEN_HEADER.encode()

PROBE_PATHS: Final = frozenset({"/health", "/-/healthz", "/-/routes", "/metrics", "/metrics/"})
"""What probes and Prometheus ask, who have no token. They are no requests for the engine."""

_POLICY_VIOLATION = 1008


def replica_token(environment: Mapping[str, str]) -> bytes | None:
    """The token that requests must bear; None where none is asked for.

    Raises:
        ValueError: the variable is set, and to nothing: it was meant to keep others out.
    """
    value = environment.get(REPLICA_TOKEN_VARIABLE)
    if value is None:
        return None
    if not value.strip():
        raise ValueError(
            f"the environment variable {REPLICA_TOKEN_VARIABLE} is set and empty: set it to the "
            "token that requests must bear, or leave it out to serve everybody"
        )
    return value.strip().encode()


class TokenGate:
    """ASGI middleware that answers 401 to requests without the token; probes need none."""

    def __init__(self, app: ASGIApp, token: bytes) -> None:
        """Wrap an application."""
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if (
            scope["type"] == "lifespan"
            or self._bears_token(scope)
            or (scope["type"] == "http" and rebased(scope)["path"] in PROBE_PATHS)
        ):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._refuse(send)
        else:
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})

    def _bears_token(self, scope: Scope) -> bool:
        given = b""
        for name, value in scope["headers"]:
            if name == _HEADER:
                given = value
        return hmac.compare_digest(given, self._token)

    @staticmethod
    async def _refuse(send: Send) -> None:
        message = (
            f"requests to this replica need its pool's token in the header "
            f"{REPLICA_TOKEN_HEADER}: send them to the gateway, which adds it"
        )
        status = HTTPStatus.UNAUTHORIZED
        document = error_body(
            message, status=status, kind="AuthenticationError", code="replica_token_required"
        )
        await send_error(send, status, document)
