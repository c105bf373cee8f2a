from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable

from pointsman_kube.errors import Unavailable
from pointsman_operator.work_queue import Debounce, WorkQueue


@contextlib.asynccontextmanager
async def running(
    reconcile: Callable[[str], Awaitable[float | None]], **options: object
) -> AsyncIterator[WorkQueue[str]]:
    queue: WorkQueue[str] = WorkQueue(
        "test",
        reconcile,
        source=random.Random(1),
        **options,  # type: ignore[arg-type]
    )
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_works_once_when_a_waiting_key_is_added_again() -> None:
    done: list[str] = []

    async def reconcile(key: str) -> None:
        done.append(key)

    queue: WorkQueue[str] = WorkQueue("test", reconcile)
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert 2 == len(queue)
    task = asyncio.create_task(queue.run())
    await until(lambda: queue.idle and queue.counts.done)
    task.cancel()
    assert ["a", "b"] == done


async def test_never_works_twice_at_once_on_a_key_and_again_when_it_was_added_meanwhile() -> None:
    at_once: list[int] = []
    inside = 0
    gate = asyncio.Event()

    async def reconcile(key: str) -> None:
        nonlocal inside
        inside += 1
        at_once.append(inside)
        await gate.wait()
        inside -= 1

    async with running(reconcile, workers=4) as queue:
        queue.add("a")
        await until(lambda: at_once)
        queue.add("a")
        queue.add("a")
        await asyncio.sleep(0.05)
        assert [1] == at_once
        gate.set()
        await until(lambda: len(at_once) == 2)
        await until(lambda: queue.idle)
    assert [1, 1] == at_once


async def test_works_on_several_keys_at_once_when_there_are_workers() -> None:
    inside, most = 0, 0

    async def reconcile(key: str) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.02)
        inside -= 1

    async with running(reconcile, workers=3) as queue:
        for number in range(9):
            queue.add(str(number))
        await until(lambda: queue.counts.done == 9)
    assert 3 == most


async def test_poison_stalls_only_itself_when_it_always_fails() -> None:
    tries: list[float] = []
    others = 0
    loop = asyncio.get_running_loop()

    async def reconcile(key: str) -> None:
        nonlocal others
        if key == "poison":
            tries.append(loop.time())
            raise RuntimeError("poison")
        others += 1

    async with running(reconcile, workers=1, base_seconds=0.05, most_seconds=10.0) as queue:
        queue.add("poison")
        for number in range(100):
            queue.add(str(number))
        await until(lambda: others == 100)
        await until(lambda: len(tries) == 4)
        assert 1 == queue.retrying
        gaps = [later - sooner for sooner, later in itertools.pairwise(tries)]
        # 0.05, 0.1, 0.2 s, each shortened by half at most.
        assert gaps[0] >= 0.024
        assert gaps[1] >= 0.049
        assert gaps[2] >= 0.099
    assert 4 <= queue.counts.failed <= 5


async def test_starts_from_the_base_again_when_it_worked_in_between() -> None:
    results = [True, True, False, True]
    loop = asyncio.get_running_loop()
    tries: list[float] = []

    async def reconcile(key: str) -> None:
        tries.append(loop.time())
        if results[len(tries) - 1]:
            raise Unavailable("no")

    async with running(reconcile, base_seconds=0.2, most_seconds=10.0) as queue:
        queue.add("a")
        await until(lambda: len(tries) == 3)
        await until(lambda: queue.retrying == 0)
        queue.add("a")
        await until(lambda: len(tries) == 4)
        assert 1 == queue.retrying
        results.append(False)
        await until(lambda: len(tries) == 5)
    # Without the reset 0.4 s at least.
    assert tries[4] - tries[3] < 0.4


async def test_waits_as_the_server_asks_when_it_is_turned_away() -> None:
    loop = asyncio.get_running_loop()
    tries: list[float] = []

    async def reconcile(key: str) -> None:
        tries.append(loop.time())
        if len(tries) == 1:
            raise Unavailable("busy", status=429, retry_after_seconds=0.5)

    async with running(reconcile, base_seconds=0.01) as queue:
        queue.add("a")
        await until(lambda: len(tries) == 2)
    assert tries[1] - tries[0] >= 0.5


async def test_comes_back_when_it_asked_for_it_and_sooner_when_added() -> None:
    loop = asyncio.get_running_loop()
    tries: list[float] = []

    async def reconcile(key: str) -> float | None:
        tries.append(loop.time())
        return 0.1 if len(tries) == 1 else 30.0 if len(tries) == 2 else None

    async with running(reconcile) as queue:
        queue.add("a")
        await until(lambda: len(tries) == 2)
        assert 0.1 <= tries[1] - tries[0] < 1.0
        queue.add("a")
        await until(lambda: len(tries) == 3)
        await asyncio.sleep(0.05)
        assert 3 == len(tries)


async def test_keeps_the_earlier_time_when_a_later_one_is_asked_for() -> None:
    done: list[str] = []

    async def reconcile(key: str) -> None:
        done.append(key)

    async with running(reconcile) as queue:
        queue.add_later("a", 0.05)
        queue.add_later("a", 60.0)
        queue.add_later("b", 60.0)
        queue.add_later("b", 0.05)
        await until(lambda: sorted(done) == ["a", "b"], seconds=1.0)


async def test_does_nothing_more_when_the_key_is_forgotten() -> None:
    done: list[str] = []

    async def reconcile(key: str) -> None:
        done.append(key)

    async with running(reconcile) as queue:
        queue.add_later("a", 0.05)
        queue.add_failed("a")
        queue.forget("a")
        await asyncio.sleep(0.2)
        assert [] == done
        assert 0 == queue.retrying


async def test_counts_as_failed_when_it_takes_too_long() -> None:
    async def reconcile(key: str) -> None:
        await asyncio.sleep(60)

    async with running(reconcile, timeout_seconds=0.05, base_seconds=60.0) as queue:
        queue.add("a")
        await until(lambda: queue.counts.failed == 1)
        assert queue.idle


async def test_tells_how_long_the_first_key_waits_when_workers_are_busy() -> None:
    now = 100.0

    async def reconcile(key: str) -> None:
        """Never started."""

    queue: WorkQueue[str] = WorkQueue("test", reconcile, clock=lambda: now)
    queue.add("a")
    now += 7.0
    queue.add("b")
    assert 7.0 == queue.longest_wait_seconds


async def test_debounce_calls_once_when_much_happens() -> None:
    calls: list[float] = []
    loop = asyncio.get_running_loop()
    debounce = Debounce(lambda: calls.append(loop.time()), 0.05)
    started = loop.time()
    for _ in range(10):
        debounce()
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    assert 1 == len(calls)
    assert calls[0] - started >= 0.05
    debounce()
    await asyncio.sleep(0.1)
    assert 2 == len(calls)


async def order_of(*adds: tuple[str, bool]) -> list[str]:
    """In which order one worker takes keys that were added before it started."""
    done: list[str] = []

    async def reconcile(key: str) -> None:
        done.append(key)

    queue: WorkQueue[str] = WorkQueue("test", reconcile, workers=1)
    for key, urgent in adds:
        queue.add(key, urgent=urgent)
    task = asyncio.create_task(queue.run())
    await until(lambda: queue.idle and queue.counts.done)
    task.cancel()
    return done


async def test_urgent_key_goes_first_when_others_wait() -> None:
    assert ["c", "a", "b"] == await order_of(("a", False), ("b", False), ("c", True))


async def test_waiting_key_becomes_urgent_when_it_is_added_so() -> None:
    adds = [("a", False), ("b", False), ("b", True), ("b", False)]
    assert ["b", "a"] == await order_of(*adds)


async def test_others_get_every_fifth_turn_when_all_the_time_something_is_urgent() -> None:
    urgent = [(f"u{number}", True) for number in range(9)]
    assert ["u0", "u1", "u2", "u3", "a", "u4", "u5", "u6", "u7", "b", "u8"] == await order_of(
        ("a", False), ("b", False), *urgent
    )


async def test_key_stays_urgent_when_it_is_so_later_or_was_worked_on() -> None:
    done: list[str] = []
    gate = asyncio.Event()

    async def reconcile(key: str) -> None:
        done.append(key)
        await gate.wait()

    async with running(reconcile, workers=1) as queue:
        queue.add("a")
        await until(lambda: done)
        for key in ("b", "c", "d"):
            queue.add(key)
        queue.add("a", urgent=True)
        queue.add_later("e", 0.02, urgent=True)
        queue.add_later("d", 5.0, urgent=True)
        await until(lambda: len(queue) == 4)
        gate.set()
        await until(lambda: len(done) == 6)
    # "a" is put in again when it ends, behind those that were urgent before.
    assert ["a", "d", "e", "a", "b", "c"] == done


async def test_debounce_gathers_for_longer_while_calls_keep_coming() -> None:
    fired: list[float] = []
    clock = asyncio.get_running_loop().time
    debounce = Debounce(lambda: fired.append(clock()), 0.02, most_seconds=0.3, clock=clock)
    began = clock()
    while len(fired) < 5:
        debounce()
        await asyncio.sleep(0.001)
    waits = [after - before for before, after in itertools.pairwise([began, *fired])]
    least = (0.02, 0.04, 0.08, 0.16, 0.3)
    assert [True] * 5 == [wait >= wanted for wait, wanted in zip(waits, least, strict=True)]
    await asyncio.sleep(0.4)
    began = clock()
    debounce()
    await until(lambda: len(fired) == 6)
    # It was still for long enough: as at first.
    assert fired[-1] - began < 0.25
