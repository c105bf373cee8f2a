"""What a client sees of a stream, and the same stream gone on with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import aiohttp

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(slots=True, kw_only=True)
class Seen:
    """A stream, read to its end."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: list[int] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    usage: dict[str, Any] | None = None
    roles: int = 0
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> tuple[object, ...]:
        """What has to be the same in a stream that was gone on with."""
        usage = self.usage or {}
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        ending = (self.finish_reason, self.stop_reason)
        return (self.text, self.token_ids, self.prompt_token_ids, ending, self.roles, counts)


async def read_stream(http: aiohttp.ClientSession, path: str, body: Mapping[str, object]) -> Seen:
    """Stream an answer with its token ids and usage; fails the test where it is no 200."""
    asked = {
        **body,
        "stream": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    async with http.post(path, json=asked) as reply:
        text = await reply.text()
        assert 200 == reply.status, text
        seen = Seen(headers=dict(reply.headers))
    events = text.strip().split("\n\n")
    assert "data: [DONE]" == events.pop(), text
    for event in events:
        chunk = json.loads(event.removeprefix("data: "))
        assert "error" not in chunk, chunk
        seen.chunks.append(chunk)
        seen.usage = chunk.get("usage") or seen.usage
        _take(seen, chunk)
    return seen


def _take(seen: Seen, chunk: dict[str, Any]) -> None:
    if chunk.get("prompt_token_ids"):
        seen.prompt_token_ids = chunk["prompt_token_ids"]
    for choice in chunk["choices"]:
        delta = choice.get("delta", {})
        seen.text += delta.get("content") or choice.get("text") or ""
        seen.roles += "role" in delta
        seen.tool_calls.extend(delta.get("tool_calls") or ())
        seen.token_ids.extend(choice.get("token_ids") or ())
        seen.prompt_token_ids = choice.get("prompt_token_ids") or seen.prompt_token_ids
        if choice.get("finish_reason") is not None:
            seen.finish_reason = choice["finish_reason"]
            seen.stop_reason = choice.get("stop_reason")


def continued(body: Mapping[str, object], token_ids: Sequence[int]) -> dict[str, object]:
    """The body that goes on from these tokens."""
    return {**body, "vllm_xargs": {"pointsman_continue": list(token_ids)}}
