"""A replica over several hosts lives and ends as one."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from pointsman_serving.engines.group import SILENT_SECONDS, GroupPlace, GroupWatch, MemberLostError
from pointsman_serving.engines.vllm import place_arguments


@dataclass
class FakeMember:
    """Says what it is told to say."""

    name: str = "member 1 of 1"
    says: str | None = ""
    dead: bool = False
    told: list[bool] = field(default_factory=list)

    def beat(self, *, busy: bool) -> None:
        self.told.append(busy)

    def heard(self) -> str | None:
        if self.dead:
            raise MemberLostError("its pod is gone")
        return self.says


@dataclass
class Group:
    """A watch over fakes."""

    members: list[FakeMember]
    busy: bool = False
    now: float = 0.0
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ended = threading.Event()
        self.watch = GroupWatch(
            self.members, busy=lambda: self.busy, lost=self._lose, clock=lambda: self.now
        )

    def _lose(self, reason: str) -> None:
        self.lost.append(reason)
        self.ended.set()


def test_group_goes_on_when_every_member_is_well() -> None:
    group = Group([FakeMember(), FakeMember()])
    assert "" == group.watch.look()


def test_every_member_is_told_whether_requests_are_open() -> None:
    group = Group([FakeMember(), FakeMember()])
    group.watch.look()
    group.busy = True
    group.watch.look()
    assert [[False, True], [False, True]] == [member.told for member in group.members]


def test_group_is_lost_when_one_member_is_dead() -> None:
    group = Group([FakeMember(), FakeMember(name="member 2 of 2 on 10.0.0.2", dead=True)])
    assert "member 2 of 2 on 10.0.0.2 is lost: its pod is gone" == group.watch.look()


def test_group_is_lost_when_the_engine_of_one_member_has_failed() -> None:
    group = Group([FakeMember(says="out of memory"), FakeMember()])
    assert "the engine of member 1 of 1 has failed: out of memory" == group.watch.look()


def test_member_may_be_silent_for_a_while_and_not_for_longer() -> None:
    group = Group([FakeMember(says=None)])
    group.now = SILENT_SECONDS - 0.1
    assert "" == group.watch.look()
    group.now = SILENT_SECONDS
    assert group.watch.look().startswith("member 1 of 1 has said nothing for 30 s")


def test_silence_counts_from_the_last_word() -> None:
    group = Group([FakeMember()])
    group.now = 100.0
    group.watch.look()
    group.members[0].says = None
    group.now = 100.0 + SILENT_SECONDS - 0.1
    assert "" == group.watch.look()


def test_loss_is_told_once_when_a_member_dies_under_watch() -> None:
    group = Group([FakeMember()])
    group.watch.start()
    group.members[0].dead = True
    assert group.ended.wait(5.0)
    assert ["member 1 of 1 is lost: its pod is gone"] == group.lost


def test_nothing_is_told_when_the_watch_was_closed() -> None:
    group = Group([FakeMember(dead=True)])
    group.watch.start()
    group.watch.close()
    assert not group.ended.wait(1.0)


@pytest.mark.parametrize("rank", [0, 1])
def test_vllm_is_told_where_its_processes_meet_when_it_has_several_hosts(rank: int) -> None:
    place = GroupPlace(rank=rank, hosts=2, leader_host="10.0.0.1", leader_port=40001)
    assert [
        "--distributed-executor-backend=mp",
        "--nnodes=2",
        f"--node-rank={rank}",
        "--master-addr=10.0.0.1",
        "--master-port=40001",
    ] == place_arguments(place)
    assert [] == place_arguments(None)
