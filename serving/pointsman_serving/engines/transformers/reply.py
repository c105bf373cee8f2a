"""OpenAI's answer objects, whole and in chunks, with the field names that vLLM sends."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pointsman_serving.engines.openai_reply import Endpoint, reply_head, server_sent_event


@dataclass(slots=True, kw_only=True)
class Reply:
    """One answer as it grows."""

    endpoint: Endpoint
    identity: str
    created: int
    """Seconds since the epoch."""
    model_name: str
    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None

    def usage(self) -> dict[str, object]:
        """Token counts; ``cached_tokens`` is what the prefix cache saved."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def whole(self, text: str) -> dict[str, object]:
        """The answer that is not streamed."""
        choice: dict[str, object] = {"index": 0}
        if self.endpoint is Endpoint.CHAT:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        choice["logprobs"] = None
        choice["finish_reason"] = self.finish_reason
        return {
            **self._head(self.endpoint.whole_object),
            "choices": [choice],
            "usage": self.usage(),
        }

    def opening(self) -> bytes:
        """The first chunk of a chat, with the role; nothing for a text completion."""
        if self.endpoint is Endpoint.COMPLETION:
            return b""
        return self._chunk({"role": "assistant", "content": ""}, "", None)

    def chunk(self, text: str) -> bytes:
        """A piece of text."""
        return self._chunk({"content": text}, text, None)

    def last_chunk(self) -> bytes:
        """The chunk that says why the answer ends."""
        return self._chunk({}, "", self.finish_reason)

    def usage_chunk(self) -> bytes:
        """The chunk with token counts and no choices."""
        return _event(
            {**self._head(self.endpoint.chunk_object), "choices": [], "usage": self.usage()}
        )

    def _chunk(self, delta: dict[str, str], text: str, finish_reason: str | None) -> bytes:
        choice: dict[str, object] = {"index": 0}
        if self.endpoint is Endpoint.CHAT:
            choice["delta"] = delta
        else:
            choice["text"] = text
        choice["logprobs"] = None
        choice["finish_reason"] = finish_reason
        return _event({**self._head(self.endpoint.chunk_object), "choices": [choice]})

    def _head(self, object_name: str) -> dict[str, object]:
        return reply_head(
            object_name,
            reply_id=self.identity,
            created=self.created,
            model_name=self.model_name,
        )


def _event(document: dict[str, object]) -> bytes:
    return server_sent_event(
        json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    )
