"""A replica's address with what is constant about requests to it."""

from __future__ import annotations

from pointsman_serving.routing.types import Api, ReplicaAddress


class Endpoint:
    """One replica's address and the fixed parts of its requests."""

    __slots__ = ("_host_line", "_paths", "address")

    def __init__(self, address: ReplicaAddress) -> None:
        self.address = address
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
