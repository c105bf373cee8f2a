"""What a client hears of its waiting where it asked to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pointsman_api.route_table import Overload
from pointsman_serving.gateway.dispatcher import Standing
from pointsman_serving.gateway.openai import shutting_down
from pointsman_serving.gateway.progress import ProgressReply, waiting_comment, wants_progress
from pointsman_serving.gateway.reply import send_error
from tests.gateway.fake_engine import DONE, FakeEngine, answer, chat_event, status
from tests.gateway.harness import (
    address_of,
    ask,
    chat,
    client_of,
    events,
    gateway_to,
    post,
    table_of,
    until,
)

STREAM = b"content-type: text/event-stream; charset=utf-8\r\n"
JSON = b"content-type: application/json\r\n"


@dataclass
class FakeReply:
    """Keeps what is written."""

    paused: bool = False
    statuses: list[int] = field(default_factory=list)
    lines: bytes = b""
    body: bytes = b""
    ended: bool = False
    aborted: bool = False

    def start(
        self, status: int, lines: bytes, *, length: int | None, body: bytes, last: bool
    ) -> None:
        self.statuses.append(status)
        self.lines, self.body, self.ended = lines, body, last

    def send(self, data: bytes) -> None:
        self.body += data

    def end(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.aborted = True


class Timers:
    """A loop's timers, rung by hand."""

    @dataclass
    class One:
        seconds: float
        ring: Callable[[], None]
        cancelled: bool = False

        def cancel(self) -> None:
            self.cancelled = True

    def __init__(self) -> None:
        self.all: list[Timers.One] = []

    def call_later(self, seconds: float, ring: Callable[[], None]) -> Timers.One:
        self.all.append(Timers.One(seconds, ring))
        return self.all[-1]

    @property
    def open(self) -> list[Timers.One]:
        return [timer for timer in self.all if not timer.cancelled]

    def ring(self) -> float:
        """Ring the only one that is set; after how many seconds that was."""
        (timer,) = self.open
        self.all.clear()
        timer.ring()
        return timer.seconds


@dataclass
class Case:
    reply: FakeReply
    timers: Timers
    progress: ProgressReply


@pytest.fixture
def case() -> Case:
    reply, timers = FakeReply(), Timers()
    progress = ProgressReply(
        reply,
        call_later=timers.call_later,
        standing=lambda: Standing(3, 12.4, cold=False),
        lines=b"x-request-id: r\r\n",
    )
    return Case(reply, timers, progress)


def test_client_hears_after_a_second_and_then_every_two_when_it_waits(case: Case) -> None:
    case.progress.start_telling()
    assert case.reply.statuses == []
    assert [case.timers.ring(), case.timers.ring(), case.timers.ring()] == [1.0, 2.0, 2.0]
    assert case.reply.statuses == [200]
    assert case.reply.body == b": waiting, position 3, about 12 s\n\n" * 3
    assert case.reply.lines.startswith(b"x-request-id: r\r\ncontent-type: text/event-stream")
    assert not case.reply.ended


def test_reply_is_as_ever_when_nothing_was_told(case: Case) -> None:
    case.progress.start_telling()
    case.progress.stop_telling()
    assert case.timers.open == []
    case.progress.start(404, JSON, length=2, body=b"{}", last=True)
    assert (case.reply.statuses, case.reply.body, case.reply.ended) == ([404], b"{}", True)


def test_stream_follows_the_comments_when_it_begins(case: Case) -> None:
    case.progress.start_telling()
    case.timers.ring()
    case.progress.start(200, STREAM, length=None, body=b"data: 1\n\n", last=False)
    assert case.timers.open == []
    case.progress.send(b"data: 2\n\n")
    case.progress.end()
    assert case.reply.statuses == [200]
    assert case.reply.body.endswith(b"about 12 s\n\ndata: 1\n\ndata: 2\n\n")
    assert case.reply.ended


def test_error_is_an_event_when_the_client_has_heard(case: Case) -> None:
    case.progress.start_telling()
    case.timers.ring()
    send_error(case.progress, shutting_down(), b"")
    assert case.reply.statuses == [200]
    error, done = events(case.reply.body)[1:]
    assert json.loads(error[6:])["error"]["code"] == "gateway_stopping"
    assert done == DONE
    assert case.reply.ended


def test_replicas_error_is_one_event_when_it_comes_in_pieces_and_lines(case: Case) -> None:
    case.progress.start_telling()
    case.timers.ring()
    case.progress.start(400, JSON, length=20, body=b'{\n "error":\r\n', last=False)
    case.progress.send(b' "no"\n}')
    assert b"data" not in case.reply.body
    case.progress.end()
    error = events(case.reply.body)[1]
    assert (error.count(b"\n"), json.loads(error[6:])) == (2, {"error": "no"})


def test_client_hears_nothing_more_when_it_does_not_read(case: Case) -> None:
    case.progress.start_telling()
    case.timers.ring()
    before = case.reply.body
    case.reply.paused = True
    case.timers.ring()
    assert case.reply.body == before
    assert len(case.timers.open) == 1


def test_client_hears_nothing_more_when_its_request_waits_no_more() -> None:
    reply, timers = FakeReply(), Timers()
    progress = ProgressReply(reply, call_later=timers.call_later, standing=lambda: None, lines=b"")
    progress.start_telling()
    timers.ring()
    assert (reply.statuses, timers.open) == ([], [])


def test_connection_is_cut_when_the_reply_is(case: Case) -> None:
    case.progress.start_telling()
    case.progress.abort()
    assert (case.reply.aborted, case.timers.open) == (True, [])


@pytest.mark.parametrize(
    ("standing", "comment"),
    [
        (Standing(1, None, cold=True), b": waiting for a replica to start, position 1\n\n"),
        (Standing(None, None, cold=False), b": waiting, far back\n\n"),
        (Standing(2, 0.6, cold=False), b": waiting, position 2, about 1 s\n\n"),
    ],
)
def test_comment_says_what_is_known_when_it_is_written(standing: Standing, comment: bytes) -> None:
    assert waiting_comment(standing) == comment


@pytest.mark.parametrize(
    ("value", "stream", "wanted"),
    [("true", True, True), (" True ", True, True), ("true", False, False), ("1", True, False)],
)
def test_progress_is_told_only_when_a_stream_asks(value: str, stream: bool, wanted: bool) -> None:
    assert wants_progress({"x-pointsman-progress": value}, stream=stream) is wanted
    assert not wants_progress({}, stream=True)


# Over real sockets.

ASK = post(chat(stream=True), "x-pointsman-progress: true")


@pytest.mark.pain_22
async def test_stream_comes_after_comments_when_a_replica_starts(engine: FakeEngine) -> None:
    engine.behaviour = answer("one two")
    async with gateway_to() as gateway, client_of(gateway) as client:
        await client.send(ASK)
        first = await asyncio.wait_for(client.reader.readuntil(b"\n\n"), 5)
        assert first.startswith(b"HTTP/1.1 200")
        assert b"text/event-stream" in first
        assert first.endswith(b": waiting for a replica to start, position 1\n\n")
        gateway.plane.set_replicas("p", [address_of(engine)])
        rest = await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 5)
        assert [chat_event(word) in rest for word in ("one", "two")] == [True, True]
        assert rest.count(b"HTTP/1.1") == 0
        assert DONE in rest
        # The connection is whole: it can be used again.
        await client.send(ASK)
        assert (await client.answer()).status == 200
    assert "x-pointsman-progress" not in engine.calls[0].headers


@pytest.mark.pain_22
async def test_error_comes_as_an_event_when_the_wait_was_in_vain(engine: FakeEngine) -> None:
    table = table_of(overload=Overload(max_cold_start_seconds=1.3))
    async with gateway_to(table=table) as gateway:
        reply = await ask(gateway, ASK)
        assert (reply.status, reply.complete) == (200, True)
        comment, error, done = events(reply.body)
        assert comment.startswith(b": waiting")
        assert json.loads(error[6:])["error"]["code"] == "no_replica"
        assert done == DONE


async def test_replicas_refusal_comes_as_an_event_when_the_client_has_heard(
    engine: FakeEngine,
) -> None:
    engine.behaviour = status(400)
    async with gateway_to() as gateway:
        asked = asyncio.ensure_future(ask(gateway, ASK))
        await until(lambda: len(gateway.plane.admission) == 1)
        await asyncio.sleep(1.1)
        gateway.plane.set_replicas("p", [address_of(engine)])
        reply = await asked
    assert json.loads(events(reply.body)[1][6:]) == {"error": {"message": "engine says no"}}
    assert reply.body.endswith(DONE)
