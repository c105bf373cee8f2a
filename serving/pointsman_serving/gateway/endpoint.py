"""A replica's address, what is constant about requests to it, and which are open there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pointsman_serving.routing.types import Api, ReplicaAddress

if TYPE_CHECKING:
    from pointsman_serving.gateway.connection import UpstreamConnection


class Endpoint:
    """One replica's address, the fixed parts of its requests, and who waits for replies."""

    __slots__ = ("_host_line", "_paths", "address", "busy", "heard", "token_line")

    def __init__(self, address: ReplicaAddress, *, token_line: bytes = b"") -> None:
        self.address = address
        self.token_line = token_line
        """The header line with the token that this replica asks for; empty: it asks for none."""
        self.busy: set[UpstreamConnection] = set()
        """The connections on which a reply is awaited."""
        self.heard = False
        """A byte came; who watches takes it back."""
        default = address.port == (443 if address.tls else 80)
        host = f"[{address.host}]" if ":" in address.host else address.host
        authority = host if default else f"{host}:{address.port}"
        self._host_line = f" HTTP/1.1\r\nhost: {authority}\r\n".encode("ascii")
        self._paths = {api: f"POST {address.base_path}/{api.value}".encode("ascii") for api in Api}

    def request(self, api: Api, header_lines: bytes, body: bytes) -> bytes:
        """The whole request."""
        return b"".join(
            [
                self._paths[api],
                self._host_line,
                header_lines,
                b"content-length: %d\r\n\r\n" % len(body),
                body,
            ]
        )
