from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable

import pytest

from pointsman_kube.kinds import CONFIG_MAP, Object
from pointsman_kube.mirror import Key, Mirror
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
            retry_most_seconds=0.05,
            source=random.Random(1),
            **options,  # type: ignore[arg-type]
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
