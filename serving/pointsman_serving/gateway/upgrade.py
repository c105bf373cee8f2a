"""A request that offers an upgrade, read as one that does not.

A server may ignore an Upgrade. Java's HTTP client offers ``Upgrade: h2c`` with every first
request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pointsman_serving.gateway.headers import Header


class ParserCallbacks(Protocol):
    """What httptools calls."""

    def on_message_begin(self) -> None:
        """A request begins."""

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or a trailer."""

    def on_headers_complete(self) -> None:
        """The body follows."""

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""

    def on_message_complete(self) -> None:
        """It is whole."""


def head_without_upgrade(url: bytes, headers: Sequence[Header], *, http10: bool) -> bytes:
    """What is left of a POST's head for a parser that has ``PastHead`` for callbacks."""
    head = [b"POST " + url + (b" HTTP/1.0\r\n" if http10 else b" HTTP/1.1\r\n")]
    head += [
        name + b": " + value + b"\r\n"
        for name, value in headers
        if name in (b"content-length", b"transfer-encoding")
    ]
    return b"".join([*head, b"\r\n"])


class PastHead:
    """Parser callbacks for a request whose head has been read before, and those that follow."""

    def __init__(self, callbacks: ParserCallbacks) -> None:
        self._callbacks = callbacks
        self._head = True

    def on_message_begin(self) -> None:
        """A request begins."""
        if not self._head:
            self._callbacks.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        if not self._head:
            self._callbacks.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or a trailer."""
        if not self._head:
            self._callbacks.on_header(name, value)

    def on_headers_complete(self) -> None:
        """The body follows."""
        if not self._head:
            self._callbacks.on_headers_complete()
        self._head = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._callbacks.on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self._callbacks.on_message_complete()
