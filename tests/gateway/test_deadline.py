from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pointsman_serving.gateway.deadline import Deadline


@dataclass(eq=False)
class Timer:
    at: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Loop:
    """Time that the test moves."""

    now: float = 100.0
    timers: list[Timer] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self.now + delay, call)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [t for t in self.timers if t.at <= end and not t.cancelled]:
            timer = min(due, key=lambda each: each.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.call()
        self.now = end


def deadline(loop: Loop, rang: list[float], *, latest: float = 10.0) -> Deadline:
    start = loop.now
    return Deadline(
        loop.call_later, loop.time, lambda: rang.append(loop.now - start), latest=start + latest
    )


def test_deadline_rings_once_when_it_passes() -> None:
    loop, rang = Loop(), list[float]()
    deadline(loop, rang).set(2.0, loop.now)
    loop.advance(1.9)
    assert rang == []
    loop.advance(5.0)
    assert rang == [2.0]


def test_deadline_rings_late_when_it_is_moved_to_later() -> None:
    loop, rang = Loop(), list[float]()
    moved = deadline(loop, rang)
    for _ in range(5):
        moved.set(2.0, loop.now)
        loop.advance(1.0)
    assert rang == []
    loop.advance(3.0)
    assert rang == [6.0]


def test_deadline_touches_no_timer_when_it_is_moved_to_later() -> None:
    loop, rang = Loop(), list[float]()
    moved = deadline(loop, rang)
    moved.set(2.0, loop.now)
    timer = loop.timers[0]
    for _ in range(100):
        loop.advance(0.01)
        moved.set(2.0, loop.now)
    assert loop.timers == [timer]


def test_deadline_rings_early_when_it_is_moved_to_earlier() -> None:
    loop, rang = Loop(), list[float]()
    moved = deadline(loop, rang)
    moved.set(5.0, loop.now)
    moved.set(1.0, loop.now)
    loop.advance(9.0)
    assert rang == [1.0]


def test_deadline_is_final_when_the_latest_time_comes_first() -> None:
    loop, rang = Loop(), list[float]()
    bound = deadline(loop, rang, latest=3.0)
    bound.set(5.0, loop.now)
    assert not bound.final
    loop.advance(4.0)
    assert rang == [3.0]
    assert bound.final


def test_deadline_is_silent_when_it_is_cancelled() -> None:
    loop, rang = Loop(), list[float]()
    cancelled = deadline(loop, rang)
    cancelled.set(1.0, loop.now)
    cancelled.cancel()
    loop.advance(20.0)
    assert rang == []


def test_deadline_lets_what_came_be_read_first_when_the_process_stood_still() -> None:
    loop, rang = Loop(), list[float]()
    moved = deadline(loop, rang)
    moved.set(1.0, loop.now)
    loop.now += 4.0  # nothing ran meanwhile
    loop.advance(0.01)
    assert [] == rang
    # What was read moves it; else it rings after all.
    moved.set(1.0, loop.now)
    loop.advance(0.5)
    assert [] == rang
    loop.advance(2.0)
    assert 1 == len(rang)
