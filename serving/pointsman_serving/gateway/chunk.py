"""The events of a stream of tokens, as engines write them."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

_TOKEN_IDS: Final = re.compile(
    rb',\s*"(?:prompt_)?token_ids"\s*:\s*(?:\[[\d,\s]*\]|null)'
    rb'|"(?:prompt_)?token_ids"\s*:\s*(?:\[[\d,\s]*\]|null)\s*,\s*'
)


class Choice(msgspec.Struct):
    """One choice of a chunk; what an engine leaves out stays None."""

    index: int = 0
    delta: dict[str, Any] | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Chunk(msgspec.Struct):
    """The data of one event of a stream."""

    choices: list[Choice] | None = None
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    model: str | None = None
    prompt_token_ids: list[int] | None = None


decode_chunk = msgspec.json.Decoder(Chunk).decode


def parts_of_call(call: object) -> list[tuple[tuple[int, str], str]]:
    """The members of one streamed tool call, each with its place.

    Raises:
        ValueError: it has no index, or a member that is no text.
    """
    if type(call) is not dict or type(call.get("index")) is not int:
        raise ValueError("a tool call without an index came")
    index = call["index"]
    function = call.get("function") or {}
    if type(function) is not dict:
        raise ValueError("a tool call came whose function is no object")
    members = {name: call[name] for name in call if name not in ("index", "function")} | function
    parts = []
    for name, value in members.items():
        if value is None:
            continue
        if type(value) is not str:
            raise ValueError(f"a tool call came whose {name!r} is no text")
        parts.append(((index, name), value))
    return parts


def without_token_ids(event: bytes) -> bytes:
    """The event without the ids that the client did not ask for."""
    # As engines write it, for nearly every event; the expression knows all other ways.
    start = event.find(b',"token_ids":[')
    if start >= 0:
        end = event.find(b"]", start)
        event = event[:start] + event[end + 1 :] if end >= 0 else event
    return _TOKEN_IDS.sub(b"", event) if b'token_ids"' in event else event


def payload(event: bytes) -> bytes:
    """The text of the event's data lines."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)
