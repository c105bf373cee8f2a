"""OpenAI's answer objects, whole and in chunks, with the field names that vLLM sends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pointsman_serving.engines.openai_reply import Endpoint, reply_head, server_sent_event

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True, kw_only=True)
class Reply:
    """One answer as it grows."""

    endpoint: Endpoint
    identity: str
    created: int
    """Seconds since the epoch."""
    model_name: str
    prompt: tuple[int, ...]
    return_token_ids: bool = False
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that the prefix cache held."""
    finish_reason: str | None = None

    def usage(self) -> dict[str, object]:
        """Token counts; ``cached_tokens`` is what the prefix cache saved."""
        return {
            "prompt_tokens": len(self.prompt),
            "total_tokens": len(self.prompt) + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def whole(self, text: str, token_ids: Sequence[int]) -> dict[str, object]:
        """The answer that is not streamed."""
        choice: dict[str, object] = {"index": 0}
        if self.endpoint is Endpoint.CHAT:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        choice["logprobs"] = None
        choice["finish_reason"] = self.finish_reason
        document: dict[str, object] = {
            **self._head(self.endpoint.whole_object),
            "choices": [choice],
            "usage": self.usage(),
        }
        if self.return_token_ids:
            choice["token_ids"] = list(token_ids)
            prompt_at = document if self.endpoint is Endpoint.CHAT else choice
            prompt_at["prompt_token_ids"] = list(self.prompt)
        return document

    def opening(self) -> bytes:
        """The first chunk of a chat, with the role; nothing for a text completion."""
        if self.endpoint is Endpoint.COMPLETION:
            return b""
        return self._chunk({"role": "assistant", "content": ""}, "", None, opening=True)

    def chunk(self, text: str, token_ids: Sequence[int], *, first: bool) -> bytes:
        """A piece of text; nothing where neither text nor tokens are to be told."""
        if not text and not (self.return_token_ids and token_ids):
            return b""
        return self._chunk({"content": text}, text, None, token_ids=token_ids, first=first)

    def last_chunk(self) -> bytes:
        """The chunk that says why the answer ends."""
        return self._chunk({}, "", self.finish_reason)

    def usage_chunk(self) -> bytes:
        """The chunk with token counts and no choices."""
        return _event(
            {**self._head(self.endpoint.chunk_object), "choices": [], "usage": self.usage()}
        )

    def _chunk(
        self,
        delta: dict[str, str],
        text: str,
        finish_reason: str | None,
        *,
        token_ids: Sequence[int] | None = None,
        opening: bool = False,
        first: bool = False,
    ) -> bytes:
        """One event; as vLLM, a chat tells its prompt with the role, a completion with text."""
        choice: dict[str, object] = {"index": 0}
        if self.endpoint is Endpoint.CHAT:
            choice["delta"] = delta
        else:
            choice["text"] = text
        choice["logprobs"] = None
        choice["finish_reason"] = finish_reason
        chunk: dict[str, object] = {
            **self._head(self.endpoint.chunk_object),
            "choices": [choice],
        }
        if self.return_token_ids:
            if token_ids is not None:
                choice["token_ids"] = list(token_ids)
            if opening:
                chunk["prompt_token_ids"] = list(self.prompt)
            if first and self.endpoint is Endpoint.COMPLETION:
                choice["prompt_token_ids"] = list(self.prompt)
        return _event(chunk)

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
