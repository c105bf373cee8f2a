"""What every request to a replica passes before the engine's own application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pointsman_serving.engines.counted_requests import CountedRequests
from pointsman_serving.engines.identity import IdentityHeaders
from pointsman_serving.engines.open_requests import OpenRequests, open_requests_folder
from pointsman_serving.engines.replica_token import TokenGate, replica_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp

    from pointsman_serving.engines.identity import ReplicaIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFront:
    """How a replica's environment wants its requests to be received."""

    token: bytes | None
    """What requests must bear; None: everybody is served."""
    open_requests: OpenRequests
    """Tells whether requests are open."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ReplicaFront:
        """Read the environment variables.

        Raises:
            ValueError: a variable has a value that cannot be meant.
        """
        return cls(
            token=replica_token(environment),
            open_requests=OpenRequests(open_requests_folder(environment)),
        )

    def before(self, app: ASGIApp, identity: ReplicaIdentity) -> ASGIApp:
        """The replica's application: refuses strangers, counts requests, says who answers."""
        named = IdentityHeaders(app, identity)
        counted = CountedRequests(named, self.open_requests)
        return counted if self.token is None else TokenGate(counted, self.token)
