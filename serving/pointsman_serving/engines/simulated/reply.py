"""What a simulated engine answers, whole or chunk by chunk, in vLLM's own shapes.

Field names and their order are those of vLLM 0.32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pointsman_serving.engines.openai_reply import (
    DONE,
    Endpoint,
    reply_head,
    server_sent_event,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman_serving.engines.timing import EngineRequest

FINGERPRINT = "pointsman-simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One request with the whole answer that the engine will take its time for."""

    endpoint: Endpoint
    reply_id: str
    created: int
    model_name: str
    work: EngineRequest | None
    """What the engine does for it; nothing where the tokens already sent are the whole answer."""
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    pieces: tuple[str, ...]
    """Text of each token; empty for the end token and past a stop string."""
    sent: int
    """How many of the tokens another replica has sent already."""
    finish_reason: str
    stop_reason: str | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool

    def usage(self, generated: int) -> dict[str, object]:
        """Token counts after this many generated tokens."""
        return {
            "prompt_tokens": len(self.prompt),
            "total_tokens": len(self.prompt) + generated,
            "completion_tokens": generated,
        }

    def _cached(self, cached_tokens: int) -> int:
        # The tokens already sent are prompt to the engine alone.
        return min(cached_tokens, len(self.prompt))

    def _head(self, object_name: str) -> dict[str, object]:
        return reply_head(
            object_name,
            reply_id=self.reply_id,
            created=self.created,
            model_name=self.model_name,
        )

    def reply(self, cached_tokens: int) -> bytes:
        """The whole answer in one JSON object."""
        text = "".join(self.pieces)
        token_ids = list(self.output) if self.return_token_ids else None
        prompt_ids = list(self.prompt) if self.return_token_ids else None
        usage = self.usage(len(self.output)) | {
            "prompt_tokens_details": {
                "cached_tokens": self._cached(cached_tokens),
                "created_cache_tokens": None,
                "multimodal_tokens": None,
            },
            "completion_tokens_details": None,
            "token_ids": None,
        }
        ending = {"finish_reason": self.finish_reason, "stop_reason": self.stop_reason}
        if self.endpoint is Endpoint.CHAT:
            message = {
                "role": "assistant",
                "content": text,
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "reasoning": None,
            }
            choice: dict[str, object] = {"index": 0, "message": message, "logprobs": None, **ending}
            choice |= {"token_ids": token_ids, "routed_experts": None}
            tail: dict[str, object] = {
                "prompt_logprobs": None,
                "prompt_token_ids": prompt_ids,
                "prompt_text": None,
            }
        else:
            choice = {"index": 0, "text": text, "logprobs": None, **ending}
            choice |= {
                "token_ids": token_ids,
                "prompt_logprobs": None,
                "prompt_token_ids": prompt_ids,
                "routed_experts": None,
            }
            tail = {}
        return _dump(
            {
                **self._head(self.endpoint.whole_object),
                "choices": [choice],
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": usage,
                **tail,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def opening(self) -> bytes:
        """The chunk that a chat stream begins with; nothing for a completion."""
        if self.endpoint is Endpoint.COMPLETION:
            return b""
        choice: dict[str, object] = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        chunk = {**self._head(self.endpoint.chunk_object), "choices": [choice]}
        if self.continuous_usage:
            chunk["usage"] = self.usage(0)
        chunk["prompt_token_ids"] = list(self.prompt) if self.return_token_ids else None
        chunk["prompt_text"] = None
        return _event(chunk)

    def beginning(self) -> bytes:
        """What comes before the first new token: the tokens already sent are one chunk."""
        return self.opening() + (self._chunk(0, self.sent) if self.sent else b"")

    def chunk(self, index: int) -> bytes:
        """The chunk of one token."""
        return self._chunk(index, index + 1)

    def _chunk(self, start: int, end: int) -> bytes:
        last = end == len(self.output)
        text = "".join(self.pieces[start:end])
        token_ids = list(self.output[start:end]) if self.return_token_ids else None
        choice: dict[str, object] = {"index": 0}
        if self.endpoint is Endpoint.CHAT:
            choice["delta"] = {"content": text}
        else:
            choice["text"] = text
        choice["logprobs"] = None
        choice["finish_reason"] = self.finish_reason if last else None
        if last or self.endpoint is Endpoint.COMPLETION:
            choice["stop_reason"] = self.stop_reason if last else None
        if self.endpoint is Endpoint.COMPLETION:
            first = self.return_token_ids and start == 0
            choice["prompt_token_ids"] = list(self.prompt) if first else None
        choice["token_ids"] = token_ids
        chunk: dict[str, object] = {**self._head(self.endpoint.chunk_object), "choices": [choice]}
        if self.continuous_usage:
            chunk["usage"] = self.usage(end)
        if last and not self.include_usage:
            chunk["system_fingerprint"] = FINGERPRINT
        return _event(chunk)

    def closing(self, cached_tokens: int) -> bytes:
        """The usage chunk, where one was asked for, and the end of the stream."""
        if not self.include_usage:
            return DONE
        usage = self.usage(len(self.output))
        usage["prompt_tokens_details"] = {"cached_tokens": self._cached(cached_tokens)}
        chunk = {
            **self._head(self.endpoint.chunk_object),
            "choices": [],
            "usage": usage,
            "system_fingerprint": FINGERPRINT,
        }
        return _event(chunk) + DONE


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _event(chunk: Mapping[str, object]) -> bytes:
    return server_sent_event(_dump(chunk))
