"""How the first process of a replica hears that another one has ended."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("ray")

from pointsman_serving.engines.group import MemberLostError
from pointsman_serving.engines.ray_group import RayMember


@dataclass
class NeverAnswers:
    """An actor whose calls take for ever."""

    told: list[bool] = field(default_factory=list)

    @property
    def beat(self) -> Any:
        return self

    def remote(self, *, busy: bool) -> None:
        self.told.append(busy)


def test_member_is_lost_when_its_connection_ends() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        member = RayMember(NeverAnswers(), "member 1 of 1", ours)
        assert None is member.heard()
        theirs.close()
        with pytest.raises(MemberLostError, match="its process has ended"):
            member.heard()


def test_member_is_lost_when_its_connection_breaks() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname(), timeout=60) as ours:
        member = RayMember(NeverAnswers(), "member 1 of 1", ours)
        theirs, _ = server.accept()
        assert None is member.heard()
        # Without lingering the system answers with a reset, as for a process that was killed.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(MemberLostError, match="its process has ended"):
            member.heard()
