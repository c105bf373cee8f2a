from __future__ import annotations

import pytest

from pointsman_serving.gateway.news import REPEAT_SECONDS, News


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_trouble_is_told_once_until_half_a_minute_is_over() -> None:
    clock = Clock()
    news = News(clock)
    assert news.is_new("a", "reset")
    assert not news.is_new("a", "reset")
    assert news.is_new("b", "reset")
    clock.now = REPEAT_SECONDS
    assert news.is_new("a", "reset")


@pytest.mark.pain_24
def test_memory_is_bounded_when_every_trouble_is_another() -> None:
    news = News(Clock())
    assert all(news.is_new(number) for number in range(5_000))
    assert len(news._told_at) <= 1_000
