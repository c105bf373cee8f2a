"""What of one stream the client has got, so that another replica can go on with it.

Pure: events in, events out. While all is well an event is only noted, and the token ids that
the gateway asked for are cut out of it. When the replica has failed, ``resume`` is called, and
the events of the next one are taken as a repetition from the beginning: what the client has is
dropped from them, and what is new is passed on under the stream's own id. A repetition that
differs from what was said is a flaw, never passed on.
"""

from __future__ import annotations

from array import array
from typing import Any, Final, NamedTuple

import msgspec

from pointsman_serving.gateway.chunk import (
    decode_chunk,
    parts_of_call,
    payload,
    without_token_ids,
)

# Pieces of a text are joined now and then: each costs more than what it holds.
_PIECES: Final = 256


_decode = msgspec.json.decode
_encode = msgspec.json.encode

_Channel = str | tuple[int, str]
"""Where a text belongs: a member of ``delta``, ``text``, or a member of a tool call's function."""


class _Mark(NamedTuple):
    """How far a stream had come."""

    tokens: int
    repeated_tokens: int
    repeated: dict[_Channel, int]
    pieces: dict[_Channel, int]
    once: set[_Channel]


class SeamError(ValueError):
    """The next replica's stream does not begin with what was said; the sentence says where."""


class Said:
    """What the client has got of one stream.

    Args:
        hide_tokens: the client did not ask for token ids, so it gets none.
        keep_prompt: keep the ids of the prompt's tokens too.
    """

    __slots__ = (
        "_begun",
        "_hide_tokens",
        "_keep_prompt",
        "_once",
        "_repeated",
        "_repeated_tokens",
        "_texts",
        "created",
        "finished",
        "flaw",
        "id",
        "model",
        "object",
        "prompt_ids",
        "prompt_tokens",
        "resumed",
        "tokens",
    )

    def __init__(self, *, hide_tokens: bool, keep_prompt: bool = False) -> None:
        self._hide_tokens = hide_tokens
        self._keep_prompt = keep_prompt
        self._texts: dict[_Channel, list[str]] = {}
        self._once: set[_Channel] = set()
        """Members that are said once: the role, a tool call's id, type and name."""
        self._begun = False
        self._repeated: dict[_Channel, int] = {}
        """Characters of each text that the next replica has repeated so far."""
        self._repeated_tokens = 0
        self.tokens = array("I")
        """The ids of all output tokens so far."""
        self.prompt_tokens: int | None = None
        self.prompt_ids = array("I")
        """The ids of the prompt's tokens, where they are kept and were told."""
        self.finished = False
        """Whether the finish reason was passed on."""
        self.flaw = ""
        """Why it cannot be continued; empty where it can."""
        self.resumed = False
        """Whether more than one replica had a part in it."""
        self.id: str | None = None
        self.object: str | None = None
        self.created: int | float | None = None
        self.model: str | None = None

    def spoil(self, flaw: str) -> None:
        """Note why the stream cannot be continued any more; the first reason stays."""
        self.flaw = self.flaw or flaw

    def take(self, event: bytes) -> bytes:
        """Note a data event; returns what of it is for the client, which may be nothing.

        Raises:
            SeamError: it repeats something else than what was said.
        """
        if self.resumed:
            before = self._mark()
            try:
                left = self._splice(event)
            except SeamError:
                self._undo(before)
                raise
            self._join_pieces()
            return left
        if not self.flaw:
            self._note(event)
        return without_token_ids(event) if self._hide_tokens else event

    def resume(self) -> None:
        """The next events are another replica's, from the beginning."""
        self.resumed = True
        self._repeated = {}
        self._repeated_tokens = 0
        for channel, pieces in self._texts.items():
            self._texts[channel] = ["".join(pieces)]

    # The first replica's events.

    def _note(self, event: bytes) -> None:
        try:
            chunk = decode_chunk(payload(event))
        except (ValueError, RecursionError):
            self.spoil("one of its events was not understood")
            return
        if not self._begun:
            self._begun = True
            self.id, self.object = chunk.id, chunk.object
            self.created, self.model = chunk.created, chunk.model
        if chunk.prompt_token_ids is not None:
            self._note_prompt(chunk.prompt_token_ids)
        if not chunk.choices:
            return
        choice = chunk.choices[0]
        if len(chunk.choices) > 1 or choice.index:
            self.spoil("it has several choices")
            return
        if choice.prompt_token_ids is not None:
            self._note_prompt(choice.prompt_token_ids)
        if choice.token_ids:
            try:
                self.tokens.extend(choice.token_ids)
            except OverflowError:
                self.spoil("its token ids are out of range")
        if choice.delta:
            self._note_delta(choice.delta)
        if choice.text:
            self._add("text", choice.text)
        if choice.finish_reason is not None:
            self.finished = True

    def _note_prompt(self, ids: list[int]) -> None:
        self.prompt_tokens = len(ids)
        if self._keep_prompt:
            try:
                self.prompt_ids = array("I", ids)
            except OverflowError:
                self.spoil("its prompt's token ids are out of range")

    def _note_delta(self, delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if value is None or value == []:
                continue
            if name == "role":
                self._once.add(name)
            elif type(value) is str:
                self._add(name, value)
            elif name == "tool_calls" and type(value) is list:
                for call in value:
                    self._note_call(call)
            else:
                self.spoil(f"its delta has the member {name!r}")

    def _note_call(self, call: object) -> None:
        try:
            parts = parts_of_call(call)
        except ValueError as error:
            self.spoil(str(error))
            return
        for channel, value in parts:
            if channel[1] == "arguments":
                self._add(channel, value)
            else:
                self._once.add(channel)

    def _add(self, channel: _Channel, text: str) -> None:
        if not text:
            return
        if not self.tokens:
            self.spoil("the replica sends no token ids")
        pieces = self._texts.setdefault(channel, [])
        pieces.append(text)
        if len(pieces) > _PIECES:
            self._texts[channel] = ["".join(pieces)]

    # The next replica's.

    def _splice(self, event: bytes) -> bytes:
        try:
            chunk = _decode(payload(event))
        except (ValueError, RecursionError) as error:
            raise SeamError("an event of the next replica was not understood") from error
        if type(chunk) is not dict:
            raise SeamError("an event of the next replica is no object")
        chunk.pop("prompt_token_ids", None)
        news = bool(chunk.get("usage"))
        choices = chunk.get("choices")
        if choices:
            choice = choices[0]
            if len(choices) > 1 or type(choice) is not dict or choice.get("index"):
                raise SeamError("the next replica sends several choices")
            news = self._splice_choice(choice)
        if not news:
            return b""
        for name in ("id", "object", "created", "model"):
            value = getattr(self, name)
            if value is not None:
                chunk[name] = value
        return b"data: " + _encode(chunk) + b"\n\n"

    def _splice_choice(self, choice: dict[str, Any]) -> bool:
        """Leave only what is new in a choice; whether that is anything."""
        choice.pop("prompt_token_ids", None)
        new_ids = self._new_tokens(choice.get("token_ids") or [])
        if self._hide_tokens:
            choice.pop("token_ids", None)
        elif "token_ids" in choice:
            choice["token_ids"] = new_ids
        news = choice.get("finish_reason") is not None
        delta = choice.get("delta")
        if type(delta) is dict:
            for name, value in list(delta.items()):
                left = self._new_part(name, value)
                if left is None:
                    del delta[name]
                else:
                    delta[name] = left
            news = news or bool(delta)
        text = choice.get("text")
        if type(text) is str:
            choice["text"] = self._new_text("text", text)
            news = news or bool(choice["text"])
        if choice.get("finish_reason") is not None:
            self._all_repeated()
            self.finished = True
        return news

    def _new_tokens(self, ids: list[int]) -> list[int]:
        known = len(self.tokens) - self._repeated_tokens
        repeated, new = ids[:known], ids[known:]
        at = self._repeated_tokens
        if repeated and list(self.tokens[at : at + len(repeated)]) != repeated:
            raise SeamError(f"the next replica repeats other tokens, from token {at} on")
        self._repeated_tokens += len(repeated)
        if new:
            try:
                self.tokens.extend(new)
            except (OverflowError, TypeError) as error:
                raise SeamError("the next replica's token ids are out of range") from error
            self._repeated_tokens += len(new)
        return new

    def _new_part(self, name: str, value: Any) -> Any:
        """What is new of a delta's member; None where nothing is."""
        if name == "role":
            known = name in self._once
            self._once.add(name)
            return None if known else value
        if type(value) is str:
            return self._new_text(name, value) or None
        if name == "tool_calls" and type(value) is list:
            calls = [left for call in value if (left := self._new_call(call)) is not None]
            return calls or None
        if value is None or value == []:
            return None
        raise SeamError(f"the next replica's delta has the member {name!r}")

    def _new_call(self, call: object) -> dict[str, Any] | None:
        try:
            parts = parts_of_call(call)
        except ValueError as error:
            raise SeamError(str(error)) from error
        function: dict[str, str] = {}
        left: dict[str, Any] = {}
        for channel, value in parts:
            member = channel[1]
            if member == "arguments":
                new = self._new_text(channel, value)
                if new:
                    function[member] = new
            elif channel not in self._once:
                self._once.add(channel)
                (function if member == "name" else left)[member] = value
            left["index"] = channel[0]
        if function:
            left["function"] = function
        return left if len(left) > 1 else None

    def _new_text(self, channel: _Channel, text: str) -> str:
        pieces = self._texts.setdefault(channel, [""])
        at = self._repeated.get(channel, 0)
        known = len(pieces[0]) - at
        if known <= 0:
            pieces.append(text)
            return text
        repeated, new = text[:known], text[known:]
        if pieces[0][at : at + len(repeated)] != repeated:
            raise SeamError(f"the next replica repeats another text, from character {at} on")
        self._repeated[channel] = at + len(repeated)
        if new:
            pieces.append(new)
        return new

    def _join_pieces(self) -> None:
        for channel, pieces in self._texts.items():
            if len(pieces) > _PIECES:
                whole = "".join(pieces)
                self._texts[channel] = [whole]
                self._repeated[channel] = len(whole)

    def _mark(self) -> _Mark:
        return _Mark(
            tokens=len(self.tokens),
            repeated_tokens=self._repeated_tokens,
            repeated=dict(self._repeated),
            pieces={channel: len(pieces) for channel, pieces in self._texts.items()},
            once=set(self._once),
        )

    def _undo(self, before: _Mark) -> None:
        """Forget what was taken of an event that is not passed on."""
        del self.tokens[before.tokens :]
        self._repeated_tokens = before.repeated_tokens
        self._repeated = before.repeated
        self._once = before.once
        for channel in list(self._texts):
            del self._texts[channel][before.pieces.get(channel, 0) :]
            if not self._texts[channel]:
                del self._texts[channel]

    def _all_repeated(self) -> None:
        """Raises where the next replica ends before it has come as far as the last one."""
        for channel, pieces in self._texts.items():
            if self._repeated.get(channel, 0) < len(pieces[0]):
                raise SeamError("the next replica ends before what was said already")

    # The end, where only that is missing.

    def closing(self, *, usage: bool) -> bytes:
        """The end of a stream whose finish reason was passed on.

        Args:
            usage: the client asked for the usage event.
        """
        end = b"data: [DONE]\n\n"
        if not usage or self.prompt_tokens is None:
            return end
        prompt, completion = self.prompt_tokens, len(self.tokens)
        event: dict[str, Any] = {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": [],
            "usage": {
                "prompt_tokens": prompt,
                "total_tokens": prompt + completion,
                "completion_tokens": completion,
            },
        }
        return b"data: " + _encode(event) + b"\n\n" + end

    def sole_text(self, channel: str) -> str | None:
        """All of one text; None where anything else was said beside it."""
        if self._texts.keys() != {channel}:
            return None
        return "".join(self._texts[channel])

    @property
    def bytes(self) -> int:
        """Bytes of all texts that were said, roughly: a character counts as one."""
        return sum(len(piece) for pieces in self._texts.values() for piece in pieces)
