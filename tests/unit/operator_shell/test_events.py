"""Which transitions become Events, and how often."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pointsman_kube.client import Kube
from pointsman_kube.errors import Forbidden
from pointsman_operator.conditions import EventNote
from pointsman_operator.events import EventWriter, worth_telling

ABOUT = {
    "apiVersion": "pointsman.dev/v1alpha1",
    "kind": "ModelPool",
    "metadata": {"name": "chat", "namespace": "team", "uid": "u1"},
}
READY = EventNote(type="Normal", reason="Ready", message="Ready is True: ok")
CRASH = EventNote(type="Warning", reason="CrashLoop", message="ReplicasReady is False: crashed")


class Events:
    """Keeps what is created."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.refuses = False

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        if self.refuses:
            raise Forbidden("no", status=403)
        self.made.append(obj)
        return obj


def writer() -> tuple[EventWriter, Events]:
    events = Events()
    return EventWriter(cast("Kube", events), reporter="operator-0"), events


@pytest.mark.parametrize(
    ("told", "note", "first"),
    [
        (True, CRASH, False),
        (True, READY, False),
        (False, READY, True),
        (False, CRASH, True),
        (True, EventNote(type="Warning", reason="Invalid", message="Accepted is False"), True),
        (False, EventNote(type="Normal", reason="Active", message="Active is True"), False),
    ],
)
def test_transition_is_an_event_when_it_says_something_new(
    told: bool, note: EventNote, first: bool
) -> None:
    assert told == worth_telling(note, first=first)


async def test_event_names_the_object_and_when_it_was() -> None:
    events, api = writer()
    await events.write(ABOUT, [CRASH], first=False, now=0.0)
    (made,) = api.made
    assert "team" == made["metadata"]["namespace"]
    assert ("ModelPool", "chat", "u1") == tuple(
        made["involvedObject"][name] for name in ("kind", "name", "uid")
    )
    assert ("Warning", "CrashLoop", "1970-01-01T00:00:00Z") == (
        made["type"],
        made["reason"],
        made["lastTimestamp"],
    )


async def test_same_event_is_not_written_again_when_ten_minutes_have_not_passed() -> None:
    events, api = writer()
    for now in (0.0, 599.0, 601.0):
        await events.write(ABOUT, [CRASH], first=False, now=now)
    await events.write(ABOUT, [READY], first=False, now=602.0)
    assert ["CrashLoop", "CrashLoop", "Ready"] == [event["reason"] for event in api.made]


async def test_long_message_is_cut_when_the_server_would_refuse_it() -> None:
    events, api = writer()
    note = EventNote(type="Warning", reason="CrashLoop", message="x" * 5000)
    await events.write(ABOUT, [note], first=False, now=0.0)
    assert 1024 == len(api.made[0]["message"])


async def test_nothing_fails_when_an_event_cannot_be_written() -> None:
    events, api = writer()
    api.refuses = True
    await events.write(ABOUT, [CRASH], first=False, now=0.0)
    assert [] == api.made


async def test_one_event_is_enough_when_all_turns_good_at_once() -> None:
    events, api = writer()
    done = EventNote(type="Normal", reason="RolledOut", message="Progressing is False: done")
    await events.write(ABOUT, [CRASH, done, READY], first=False, now=0.0)
    assert ["CrashLoop", "Ready"] == [event["reason"] for event in api.made]
    await events.write(ABOUT, [done], first=False, now=1.0)
    assert "RolledOut" == api.made[-1]["reason"]
