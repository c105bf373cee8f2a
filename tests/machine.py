"""What some tests ask of the machine; where it is lacking they are skipped, with the reason."""

from __future__ import annotations

import socket

import pytest


def needs_ipv6() -> None:
    """Skip where this machine cannot listen on ``::1``: containers often have no IPv6 at all.

    What is tried is real sockets on IPv6, for which nothing else can stand.
    """
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this machine cannot listen on ::1 ({error.strerror})")
