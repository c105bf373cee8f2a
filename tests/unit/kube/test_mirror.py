from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.testing import capture_logs

from pointsman_kube.errors import Forbidden, Invalid
from pointsman_kube.identity import Key
from pointsman_kube.kinds import CONFIG_MAP, Object
from pointsman_kube.mirror import Mirror
from tests.unit.kube.fake_api_server import FakeApiServer, config_map, kube_for, status_object


class Told:
    """The changes that a mirror told."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def __call__(self, key: Key, old: Object | None, new: Object | None) -> None:
        word = "deleted" if new is None else "added" if old is None else "changed"
        self.changes.append((key[1], word))


@contextlib.asynccontextmanager
async def running(server: FakeApiServer, **options: object) -> AsyncIterator[tuple[Mirror, Told]]:
    told = Told()
    silence = options.pop("silence_seconds", 30.0)
    async with kube_for(server, silence_seconds=silence, source=random.Random(1)) as kube:
        mirror = Mirror(
            kube,
            CONFIG_MAP,
            on_change=told,
            source=random.Random(1),
            **{"retry_most_seconds": 0.05, **options},  # type: ignore[arg-type]
        )
        task = asyncio.create_task(mirror.run())
        try:
            yield mirror, told
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_tells_what_is_there_and_what_comes_when_started(server: FakeApiServer) -> None:
    server.put("one")
    async with running(server) as (mirror, told):
        await mirror.answered()
        assert [("one", "added")] == told.changes
        server.put("two", color="red")
        server.put("two", color="blue")
        server.delete("one")
        await until(lambda: len(told.changes) == 4)
        assert [("two", "added"), ("two", "changed"), ("one", "deleted")] == told.changes[1:]
        two = mirror.get("default", "two")
        assert two is not None
        assert {"color": "blue"} == two["data"]
        assert "managedFields" not in two["metadata"]


@pytest.mark.pain_2
async def test_tells_a_deletion_that_no_watch_saw_when_history_is_lost(
    server: FakeApiServer,
) -> None:
    server.put("kept")
    server.put("gone")
    async with running(server) as (mirror, told):
        await until(lambda: server.watches == 1)
        server.delete("gone")
        server.put("late")
        server.forget()
        await until(lambda: mirror.get("default", "late"))
        assert [("gone", "deleted"), ("late", "added")] == told.changes[2:]
        assert [("default", "kept"), ("default", "late")] == sorted(mirror.keys())
        assert 2 == server.lists


async def test_goes_on_without_a_list_when_only_the_connection_broke(
    server: FakeApiServer,
) -> None:
    server.put("one")
    async with running(server) as (_, told):
        await until(lambda: server.watches == 1)
        server.cut()
        server.delete("one")
        await until(lambda: ("one", "deleted") in told.changes)
        assert 1 == server.lists


async def test_lists_again_when_the_server_answers_500_to_the_watch(server: FakeApiServer) -> None:
    server.put("one")
    async with running(server) as (_, told):
        await until(lambda: server.watches == 1)
        del server.objects["one"]
        server.refusals = [(504, {}, status_object(504, "Timeout", "Too large resource version"))]
        server.cut()
        await until(lambda: ("one", "deleted") in told.changes)
        assert 2 == server.lists


async def test_keeps_the_last_state_and_grows_old_when_the_server_is_away(
    server: FakeApiServer,
) -> None:
    server.put("one")
    async with running(server) as (mirror, told):
        await until(lambda: server.watches == 1)
        server.refusals = [(500, {}, "down")] * 6
        server.cut()
        await until(lambda: not server.refusals)
        assert [("one", "added")] == told.changes
        assert mirror.get("default", "one")
        server.put("two")
        await until(lambda: mirror.get("default", "two"))
        assert "" == mirror.last_error


async def test_is_old_when_nothing_was_heard(server: FakeApiServer) -> None:
    now = 1000.0
    async with running(server, clock=lambda: now) as (mirror, _):
        await mirror.answered()
        now += 200.0
        assert 200.0 == mirror.age_seconds
        server.tell({"type": "BOOKMARK", "object": config_map("", server.version + 1, "", {})})
        await until(lambda: mirror.age_seconds == 0.0)


async def test_reconnects_when_the_connection_is_silent(server: FakeApiServer) -> None:
    async with running(server, silence_seconds=0.2) as (_, __):
        await until(lambda: server.watches >= 3)
        assert 1 == server.lists


async def test_waits_for_the_kind_when_its_crd_is_missing(server: FakeApiServer) -> None:
    server.served = False
    async with running(server) as (mirror, told):
        await mirror.answered()
        assert mirror.served is False
        server.put("one")
        server.served = True
        await until(lambda: mirror.get("default", "one"))
        assert mirror.served is True
        assert [("one", "added")] == told.changes


async def test_drops_everything_only_when_the_kind_stays_away(server: FakeApiServer) -> None:
    server.put("one")
    async with running(server) as (mirror, told):
        await until(lambda: server.watches == 1)
        server.refusals = [(404, {}, "404 page not found")] * 2
        server.cut()
        await until(lambda: server.lists == 2)
        assert [("one", "added")] == told.changes
        server.served = False
        server.cut()
        await until(lambda: ("one", "deleted") in told.changes)
        assert mirror.served is False


async def test_looks_again_when_a_write_was_told_that_the_kind_is_unknown(
    server: FakeApiServer,
) -> None:
    server.put("one")
    served: list[bool] = []
    async with running(server, on_served=served.append) as (mirror, told):
        await until(lambda: server.watches == 1)
        # The watch goes on, as if nothing had happened.
        server.served = False
        mirror.doubt()
        await until(lambda: ("one", "deleted") in told.changes)
        server.served = True
        await until(lambda: served == [True, False, True])


async def test_keeps_the_newer_one_when_the_watch_is_behind_a_write(server: FakeApiServer) -> None:
    server.put("one", color="red")
    async with running(server) as (mirror, told):
        await until(lambda: server.watches == 1)
        held = mirror.get("default", "one")
        assert held is not None
        written = config_map("one", server.version + 10, held["metadata"]["uid"], {"color": "blue"})
        mirror.take(written)
        server.put("one", color="green")
        server.put("marker")
        await until(lambda: mirror.get("default", "marker"))
        one = mirror.get("default", "one")
        assert one is not None
        assert {"color": "blue"} == one["data"]
        assert [("one", "added"), ("one", "changed"), ("marker", "added")] == told.changes


async def test_keeps_the_new_namesake_when_the_old_one_is_told_deleted(
    server: FakeApiServer,
) -> None:
    server.put("one")
    async with running(server) as (mirror, _):
        await until(lambda: server.watches == 1)
        mirror.take(config_map("one", server.version + 10, "another", {}))
        server.delete("one")
        server.put("marker")
        await until(lambda: mirror.get("default", "marker"))
        one = mirror.get("default", "one")
        assert one is not None
        assert "another" == one["metadata"]["uid"]


async def test_finds_objects_by_their_present_values_when_they_change(
    server: FakeApiServer,
) -> None:
    server.put("one", color="red")
    by_color = {"color": lambda obj: [obj["data"].get("color")]}
    async with running(server, indexes=by_color) as (mirror, _):
        await mirror.answered()
        assert ["one"] == [obj["metadata"]["name"] for obj in mirror.find("color", "red")]
        server.put("one", color="blue")
        await until(lambda: mirror.find("color", "blue"))
        assert [] == mirror.find("color", "red")
        server.delete("one")
        await until(lambda: not len(mirror))
        assert [] == mirror.find("color", "blue")


async def test_takes_all_events_when_it_is_slower_than_the_server(server: FakeApiServer) -> None:
    slow = Told()
    async with kube_for(server) as kube:

        def slowly(key: Key, old: Object | None, new: Object | None) -> None:
            time.sleep(0.002)
            slow(key, old, new)

        mirror = Mirror(kube, CONFIG_MAP, on_change=slowly)
        task = asyncio.create_task(mirror.run())
        await until(lambda: server.watches == 1)
        for number in range(300):
            server.put(f"map-{number}", text="x" * 20_000)
        await until(lambda: len(mirror) == 300, seconds=20.0)
        assert 300 == len(slow.changes)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_backs_off_when_every_watch_is_answered_gone(server: FakeApiServer) -> None:
    server.put("one")
    server.oldest = 10**9
    async with running(server) as (_, __):
        await asyncio.sleep(1.0)
        # With waits of 25 to 50 ms at most 40 rounds fit into a second.
        assert 5 <= server.lists <= 42


def refusal(code: int = 400, reason: str = "BadRequest") -> tuple[int, dict[str, str], object]:
    return code, {}, status_object(code, reason, "unable to parse the selector")


@pytest.mark.parametrize(
    ("answer", "step"),
    [
        (refusal(), "takes the selector 'a b'"),
        (refusal(422, "Invalid"), "takes the selector 'a b'"),
        (refusal(403, "Forbidden"), "let this account list and watch configmaps in all namespaces"),
        (refusal(401, "Unauthorized"), "let this account list and watch configmaps"),
    ],
)
async def test_is_not_frozen_but_says_what_to_do_when_the_server_refuses_for_good(
    server: FakeApiServer, answer: tuple[int, dict[str, str], object], step: str
) -> None:
    now = 1000.0
    server.put("one")
    async with running(server, clock=lambda: now, label_selector="a b") as (mirror, told):
        await mirror.answered()
        with capture_logs() as logs:
            server.refusals = [answer] * 1000
            server.cut()
            await until(lambda: mirror.refused)
            now += 500.0
            left = len(server.refusals)
            await until(lambda: len(server.refusals) < left - 2)
            # The server speaks, but what we hold is old.
            assert (0.0, 500.0) == (mirror.age_seconds, mirror.stale_seconds)
            assert "unable to parse the selector" in mirror.refused
            assert [("one", "added")] == told.changes
            server.refusals.clear()
            await until(lambda: not mirror.refused and not mirror.last_error)
            assert 0.0 == mirror.stale_seconds
    (said,) = [each for each in logs if each["log_level"] == "error"]
    assert "unable to parse the selector" in said["cause"]
    assert step in said["next_step"]


async def test_is_frozen_when_nothing_answers_any_more(server: FakeApiServer) -> None:
    now = 1000.0
    async with running(server, clock=lambda: now) as (mirror, _):
        await until(lambda: server.watches == 1)
        await server.close()
        await until(lambda: mirror.last_error)
        now += 500.0
        await asyncio.sleep(0.3)
        assert (500.0, 500.0, "") == (mirror.age_seconds, mirror.stale_seconds, mirror.refused)


async def test_a_wait_for_the_first_list_ends_when_the_server_refuses_it(
    server: FakeApiServer,
) -> None:
    server.refusals = [refusal()] * 1000
    async with running(server) as (mirror, _):
        with pytest.raises(Invalid, match="unable to parse the selector"):
            await mirror.answered_or_refused()
        waiting = asyncio.ensure_future(mirror.answered())
        await asyncio.sleep(0.1)
        # Nothing is known: to take it for an empty list would delete what is there.
        assert not waiting.done()
        server.refusals.clear()
        await waiting
        await mirror.answered_or_refused()


async def test_lists_again_and_again_when_only_the_watch_is_refused(server: FakeApiServer) -> None:
    forbidden = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no watch"}
    async with running(server) as (mirror, told):
        await until(lambda: server.watches == 1)
        server.tell({"type": "ERROR", "object": forbidden})
        await until(lambda: isinstance(mirror.refusal, Forbidden))
        # That event is in the way of each watch from before it.
        server.put("one")
        await until(lambda: mirror.get("default", "one"))
        assert [("one", "added")] == told.changes
        server.events.clear()
        server.put("two")
        await until(lambda: mirror.get("default", "two") and not mirror.refused)


async def test_backs_off_when_it_may_list_and_not_watch(server: FakeApiServer) -> None:
    server.put("one")
    server.watch_refusal = refusal(403, "Forbidden")
    async with running(server, retry_most_seconds=5.0) as (mirror, _):
        await until(lambda: mirror.refused)
        began = server.lists
        await asyncio.sleep(2.0)
        # With waits that begin at an eighth of a second anew it would be eight at the least.
        assert 1 <= server.lists - began <= 5
        assert "403" in mirror.refused


@pytest.mark.parametrize(
    "garbage",
    [
        "<html>sign in</html>",
        "[]",
        '{"items": []}',
        '{"metadata": {"resourceVersion": "1"}, "items": [7]}',
        '{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": ""}}]}',
        "[" * 100_000,
    ],
)
async def test_goes_on_when_a_list_is_no_list(server: FakeApiServer, garbage: str) -> None:
    server.put("one")
    server.refusals = [(200, {}, garbage)] * 2
    async with running(server) as (mirror, told):
        await until(lambda: ("one", "added") in told.changes)
        assert "" == mirror.last_error


@pytest.mark.parametrize(
    "event",
    [
        {"type": "MODIFIED", "object": 7},
        {"type": "MODIFIED", "object": {"metadata": {"name": "one"}}},
        {"type": "ADDED", "object": {"metadata": None}},
        {"type": "BOOKMARK", "object": {}},
        {"type": "ERROR", "object": {"code": "x"}},
        {"kind": "Status"},
    ],
)
async def test_lists_again_when_a_line_is_no_event(
    server: FakeApiServer, event: dict[str, object]
) -> None:
    server.put("one")
    async with running(server) as (mirror, told):
        await until(lambda: server.watches == 1)
        # A deletion that the broken line stands for.
        del server.objects["one"]
        server.tell(event)
        await until(lambda: ("one", "deleted") in told.changes)
        server.put("two")
        await until(lambda: mirror.get("default", "two"))


async def test_one_object_keeps_no_other_back_when_it_cannot_be_taken_in(
    server: FakeApiServer,
) -> None:
    def transform(obj: Object) -> Object:
        if obj["data"].get("color") == "odd":
            raise ValueError("no such color")
        return obj

    server.put("odd", color="odd")
    server.put("one")
    async with running(server, transform=transform) as (mirror, told):
        with capture_logs() as logs:
            await mirror.answered()
            assert [("one", "added")] == told.changes
            server.put("one", color="odd")
            server.put("two")
            await until(lambda: mirror.get("default", "two"))
        # What it was before stays, as does what is found by it.
        held = mirror.get("default", "one")
        assert held is not None
        assert {} == held["data"]
        assert ["default/odd", "default/one"] == [each["name"] for each in logs]
        assert 2 == mirror.odd
        server.put("odd", color="red")
        await until(lambda: mirror.get("default", "odd"))


async def test_the_others_are_told_when_the_callback_fails_at_one(server: FakeApiServer) -> None:
    told: list[str] = []

    def change(key: Key, old: Object | None, new: Object | None) -> None:
        told.append(key[1])
        if key[1] == "odd":
            raise ValueError("cannot be told")

    for name in ("a", "odd", "z"):
        server.put(name)
    async with kube_for(server) as kube:
        mirror = Mirror(kube, CONFIG_MAP, on_change=change)
        task = asyncio.create_task(mirror.run())
        with capture_logs() as logs:
            await mirror.answered()
            server.put("later")
            await until(lambda: "later" in told)
        assert {"a", "odd", "z", "later"} == set(told)
        assert 1 == mirror.odd
        assert ["default/odd"] == [each["name"] for each in logs if "name" in each]
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
