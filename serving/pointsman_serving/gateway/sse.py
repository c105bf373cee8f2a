"""Server-sent events, cut at their boundaries as they arrive.

A stream is passed on in whole events, so that an error event can be added at any time, and
event for event byte-identical. Only what the gateway must know is looked at: where the first
data event is, how many came, whether ``[DONE]`` came, and the usage.
"""

from __future__ import annotations

import re

import msgspec

from pointsman_serving.gateway.chunk import payload
from pointsman_serving.gateway.said import Said, SeamError
from pointsman_serving.routing.types import Usage

# An event longer than this is passed on in pieces: a client must not wait for all of it, and
# the gateway must not hold all of it. It is far longer than any usage event.
MAX_HELD_BYTES = 256 * 1024

# The first event of a stream that may have to be continued carries the ids of the whole prompt,
# and is cut before it is passed on: this is a prompt of two million tokens.
_MAX_NOTED_BYTES = 16 * 1024 * 1024

# A lone \r at the end of what is there may be half of \r\n: no boundary yet.
_BOUNDARY = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n|\Z))")
_FINISH_REASON = re.compile(rb'"finish_reason"\s*:\s*"')


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class UsageObject(msgspec.Struct):
    """``usage`` as engines write it; what they leave out stays None."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        """The counts in the scheduler's words."""
        details = self.prompt_tokens_details
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=None if details is None else details.cached_tokens,
        )


class StreamError(msgspec.Struct):
    """The ``error`` of an event, as engines and providers write it."""

    message: object = None
    type: object = None
    code: object = None

    @property
    def status(self) -> int:
        """The HTTP status that it would have been; 500 where it names none."""
        code = self.code
        if isinstance(code, str) and code.isdigit():
            code = int(code)
        if isinstance(code, int) and 400 <= code <= 599:
            return code
        return 400 if self.type in _ABOUT_THE_REQUEST else 500


_ABOUT_THE_REQUEST = ("invalid_request_error", "BadRequestError")


class _ErrorChunk(msgspec.Struct):
    error: StreamError | str | None = None
    choices: msgspec.Raw | None = None


_decode_error = msgspec.json.Decoder(_ErrorChunk).decode
_ERROR_STARTS = (b'data: {"error"', b'data:{"error"')


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    usage: UsageObject | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class SseScanner:
    """Cuts one stream into events.

    Args:
        hide_usage: leave out the event that only carries the usage, because the gateway asked
            for it and the client did not.
        said: notes what is passed on, where the stream may be continued; an error of the replica
            is then held back.
    """

    __slots__ = (
        "_ended",
        "_hide_usage",
        "_in_piece",
        "_last",
        "_max_held",
        "_said",
        "_tail",
        "done",
        "error",
        "events",
        "holding",
        "seam",
        "usage",
    )

    def __init__(self, *, hide_usage: bool, said: Said | None = None) -> None:
        self._hide_usage = hide_usage
        self._said = said
        self.holding = False
        """Whether an error was held back, and with it all that came after."""
        self.seam = ""
        """Why the stream does not go on where the last one broke; empty where it does."""
        self._max_held = MAX_HELD_BYTES if said is None else _MAX_NOTED_BYTES
        self._tail = b""
        self._in_piece = False
        self._last = b""
        self._ended = False
        self.events = 0
        """Data events seen so far, without ``[DONE]``, the usage event and errors."""
        self.done = False
        """Whether ``[DONE]`` was seen."""
        self.usage: Usage | None = None
        """The last usage that an event carried."""
        self.error: StreamError | None = None
        """What the first event that was an error said."""

    @property
    def complete(self) -> bool:
        """Whether the stream may end here: it said so, by ``[DONE]``, usage or finish reason."""
        return self.done or self._ended or bool(_FINISH_REASON.search(self._last))

    @property
    def mid_event(self) -> bool:
        """Whether part of an event has been passed on and its end has not."""
        return self._in_piece

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; return the bytes that may be passed on."""
        if self._tail:
            data = self._tail + data
        if data.endswith(b"\n\n") and b"\r" not in data:
            end = len(data)
        else:
            end = self._last_boundary(data)
        self._tail = data[end:] if end < len(data) else b""
        if end < len(data):
            data = data[:end]
        passed = self._scan(data) if data else b""
        if len(self._tail) > self._max_held:
            if self._said is not None:
                self._said.spoil("one of its events is too long")
            if not self._in_piece and _is_data(self._tail):
                self.events += 1
            self._in_piece = True
            # Line ends stay back: they may be the first half of the event's boundary.
            cut = len(self._tail.rstrip(b"\r\n"))
            passed += self._tail[:cut]
            self._tail = self._tail[cut:]
        return passed

    def flush(self) -> bytes:
        """What is left when the stream has ended: an event without its blank line."""
        tail, self._tail = self._tail, b""
        if tail and self._said is not None and not self._said.flaw and not self._in_piece:
            # Half an event must not be passed on: the stream goes on elsewhere, event by event.
            tail = tail.rstrip(b"\r\n") + b"\n\n" if _is_whole(tail) else b""
        return self._scan(tail) if tail else b""

    def _last_boundary(self, data: bytes) -> int:
        if b"\r" not in data:
            return data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        end = 0
        for match in _BOUNDARY.finditer(data):
            end = match.end()
        return end

    def _scan(self, block: bytes) -> bytes:
        """Look at whole events; return them without the hidden one."""
        if self._in_piece:
            # The rest of an event whose beginning has been passed on and counted.
            match = _BOUNDARY.search(block)
            end = match.end() if match else len(block)
            self._in_piece = False
            return block[:end] + (self._scan(block[end:]) if end < len(block) else b"")
        if b"\r" in block:
            cuts = [match.end() for match in _BOUNDARY.finditer(block)]
            starts = [0, *cuts]
            events = [block[a:b] for a, b in zip(starts, [*cuts, len(block)], strict=True) if a < b]
        elif block.find(b"\n\n") == len(block) - 2:
            events = [block]
        else:
            events = [event + b"\n\n" for event in block.split(b"\n\n")]
            if block.endswith(b"\n\n"):
                events.pop()
            else:
                events[-1] = events[-1][:-2]
        changed = False
        kept = []
        for event in events:
            try:
                left = self._look_at(event) if _is_data(event) else event
            except SeamError as error:
                self.seam = self.seam or str(error)
                left = b""
            changed = changed or left is not event
            kept.append(left)
        return b"".join(kept) if changed else block

    def _look_at(self, event: bytes) -> bytes:
        """Note what a data event says; returns what is passed on."""
        said = self._said
        if self.holding or self.seam:
            # What comes after an error that is held back, or after a flaw, belongs to it.
            return b""
        if b"[DONE]" in event and payload(event) == b"[DONE]":
            self.done = True
            return event
        if b'"usage"' in event and b'"usage":null' not in event and self._is_usage(event):
            if self._hide_usage:
                return b""
            return event if said is None or not said.resumed else said.take(event)
        if (
            event.startswith(_ERROR_STARTS) or (not self.events and b'"error"' in event)
        ) and self._is_error(event):
            serious = self.error is not None and self.error.status >= 500
            self.holding = serious and said is not None and not said.flaw
            return b"" if self.holding else event
        if said is not None:
            event = said.take(event)
            if not event:
                return b""
        self.events += 1
        self._last = event
        return event

    def _is_error(self, event: bytes) -> bool:
        """Note an event that says that the engine failed: an ``error`` and no ``choices``."""
        try:
            chunk = _decode_error(payload(event))
        except (ValueError, RecursionError):
            return False
        error = chunk.error
        if error is None or chunk.choices is not None:
            return False
        if self.error is None:
            self.error = StreamError(message=error) if isinstance(error, str) else error
        return True

    def _is_usage(self, event: bytes) -> bool:
        """Note the usage of an event; True if it carries nothing else."""
        try:
            chunk = _decode_chunk(payload(event))
        except (ValueError, RecursionError):
            return False
        if chunk.usage is None:
            return False
        self.usage = chunk.usage.usage()
        if chunk.choices is None or chunk.choices:
            return False
        self._ended = True
        return True


def _is_data(event: bytes) -> bool:
    return event.startswith(b"data:") or b"\ndata:" in event or b"\rdata:" in event


def _is_whole(tail: bytes) -> bool:
    """Whether an event that lacks its blank line is one."""
    data = payload(tail)
    if data == b"[DONE]":
        return True
    try:
        _decode_chunk(data)
    except (ValueError, RecursionError):
        return False
    return True
