from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_serving.gateway.sse import MAX_HELD_BYTES, SseScanner
from pointsman_serving.routing.types import Usage
from tests.gateway.fake_engine import DONE, USAGE_EVENT, chat_event

STREAM = [
    b": keep-alive\n\n",
    chat_event(""),
    chat_event('line\n\nbreaks "usage" and data: [DONE] inside'),
    chat_event("", "stop"),
    USAGE_EVENT,
    DONE,
]
USAGE = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=3)


def feed(scanner: SseScanner, data: bytes, cuts: list[int]) -> bytes:
    out = b""
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(places):
        out += scanner.feed(data[start:end])
    return out + scanner.flush()


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=40), crlf=st.booleans())
def test_sse_same_bytes_and_facts_when_cut_anywhere(cuts: list[int], crlf: bool) -> None:
    data = b"".join(STREAM)
    hidden = b"".join(event for event in STREAM if event is not USAGE_EVENT)
    if crlf:
        data, hidden = data.replace(b"\n", b"\r\n"), hidden.replace(b"\n", b"\r\n")
    scanner = SseScanner(hide_usage=True)
    assert feed(scanner, data, cuts) == hidden
    assert (scanner.events, scanner.done, scanner.usage, scanner.complete) == (3, True, USAGE, True)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=40))
def test_sse_every_prefix_ends_at_an_event_when_cut_anywhere(cuts: list[int]) -> None:
    data = b"".join(STREAM)
    scanner = SseScanner(hide_usage=False)
    passed = b""
    for start, end in itertools.pairwise(sorted(cuts)):
        passed += scanner.feed(data[start:end])
        assert passed == b"" or passed.endswith(b"\n\n")


def test_sse_usage_stays_when_the_client_asked_for_it() -> None:
    scanner = SseScanner(hide_usage=False)
    assert scanner.feed(b"".join(STREAM)) == b"".join(STREAM)
    assert scanner.usage == USAGE


def test_sse_usage_with_text_stays_when_each_event_carries_it() -> None:
    event = (
        b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}],'
        b'"usage":{"prompt_tokens":4,"completion_tokens":1}}\n\n'
    )
    scanner = SseScanner(hide_usage=True)
    assert scanner.feed(event) == event
    assert scanner.usage == Usage(prompt_tokens=4, completion_tokens=1)
    assert not scanner.complete


def test_sse_events_counted_when_usage_is_null() -> None:
    event = b'data: {"choices":[],"usage":null}\n\n'
    scanner = SseScanner(hide_usage=True)
    assert scanner.feed(event) == event
    assert scanner.events == 1


def test_sse_not_complete_when_only_text_came() -> None:
    scanner = SseScanner(hide_usage=True)
    scanner.feed(chat_event("x"))
    assert not scanner.complete


def test_sse_complete_when_a_finish_reason_came_without_done() -> None:
    scanner = SseScanner(hide_usage=True)
    scanner.feed(chat_event("x") + chat_event("", "length"))
    assert scanner.complete


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_sse_passes_in_pieces_when_an_event_is_huge(cut: int) -> None:
    event = b"data: " + json.dumps({"x": "y" * (3 * MAX_HELD_BYTES)}).encode() + b"\n\n"
    scanner = SseScanner(hide_usage=True)
    passed = b""
    most = 0
    body = event[: len(event) - cut]
    for start in range(0, len(body), 10_000):
        piece = scanner.feed(body[start : start + 10_000])
        passed += piece
        most = max(most, len(piece))
    assert scanner.mid_event == (cut > 0)
    passed += scanner.feed(event[len(event) - cut :] + DONE)
    assert passed == event + DONE
    assert most <= MAX_HELD_BYTES + 10_000
    assert (scanner.events, scanner.done, scanner.mid_event) == (1, True, False)


def test_sse_tail_comes_out_when_the_last_event_has_no_blank_line() -> None:
    scanner = SseScanner(hide_usage=True)
    assert scanner.feed(b"data: [DONE]\n") == b""
    assert scanner.flush() == b"data: [DONE]\n"
    assert scanner.done
