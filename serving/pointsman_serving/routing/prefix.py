"""What of a prompt an engine may already hold: chained hashes of its bytes, no tokenizer.

The canonical bytes follow the order in which chat templates render: tools, then messages, the
system message first. Every piece is preceded by a separator, so that a conversation's bytes are
a prefix of its next turn's. Blocks are short where prompts differ most and longer with depth:
64 bytes for the first 2 kB, 1 kB beyond 16 kB, so that 128 kB cost some 200 hashes.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from pointsman_serving.routing.blocks import Blocks
from pointsman_serving.routing.types import Api, Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PRIOR_BYTES_PER_TOKEN: Final = 4
MAX_BLOCKS: Final = 1024
"""Bytes behind the last block (about 950 kB) are never thought cached."""

_GROWTH: Final = ((2_048, 64), (4_096, 128), (8_192, 256), (16_384, 512))
_LARGEST_BLOCK: Final = 1_024
_RECORD: Final = "\x1e"
_UNIT: Final = "\x1f"
# A picture costs an engine hundreds of tokens: its digest is repeated to a size that weighs alike.
_MEDIA_REPEATS: Final = 32
# These change the rendered prompt from its first token, or whose cache it may hit.
_SALTS: Final = ("cache_salt", "chat_template", "chat_template_kwargs", "documents")
_SALTED_BY: Final = frozenset(_SALTS)


def _block_ends() -> tuple[int, ...]:
    ends = []
    end = 0
    for limit, size in _GROWTH:
        while end < limit:
            end += size
            ends.append(end)
    while len(ends) < MAX_BLOCKS:
        end += _LARGEST_BLOCK
        ends.append(end)
    return tuple(ends)


BLOCK_ENDS: Final = _block_ends()
_SLICES: Final = tuple(slice(start, end) for start, end in pairwise((0, *BLOCK_ENDS)))


def prompt_of(body: Mapping[str, object], api: Api, *, model: str, tenant: str) -> Prompt:
    """Hash the prompt of a request.

    Args:
        body: the decoded JSON body. What is malformed is hashed as it is: saying so to the
            client is the engine's part.
        api: which endpoint the body was sent to.
        model: the name that the request asks for; part of ``root`` only, because the blocks
            are compared per replica.
        tenant: salt of every hash; empty where tenants share the cache.

    Source: DualMap's prefix keys and vLLM's chained block hashes, on bytes instead of tokens.
    """
    if _SALTED_BY.isdisjoint(body):
        seed, root_seed = _seeds(tenant, model)
    else:
        seed, root_seed = _salted(body, tenant, model)
    continues = False
    if api is Api.CHAT:
        head, tail, continues = _chat(body)
        head_bytes = _encode(head)
        data = head_bytes + _encode(tail) if tail else head_bytes
    else:
        # A completion is a conversation of its own: a shared prefix does not make it one.
        data = head_bytes = _plain(body.get("input" if api is Api.EMBEDDINGS else "prompt"))
    total_bytes = len(data)
    return Prompt(
        blocks=_chain(data, seed),
        total_bytes=total_bytes,
        estimated_tokens=total_bytes // PRIOR_BYTES_PER_TOKEN or 1,
        root=xxh3_64_intdigest(head_bytes, root_seed),
        continues=continues,
    )


def _salted(body: Mapping[str, object], tenant: str, model: str) -> tuple[int, int]:
    """What the blocks' and the root's hashes start from."""
    salt = tenant
    for name in _SALTS:
        if name in body:
            salt += _UNIT + name + _text(body[name])
    seed = xxh3_64_intdigest(_encode(salt))
    return seed, xxh3_64_intdigest(_encode(model), seed)


@lru_cache(maxsize=1_024)
def _seeds(tenant: str, model: str) -> tuple[int, int]:
    """The same for nearly all requests: those that have none of the fields."""
    return _salted({}, tenant, model)


def _chain(data: bytes, seed: int) -> Blocks:
    """Hashes of the whole blocks; the rest behind the last one is in no cache."""
    pieces = map(data.__getitem__, _SLICES[: bisect_right(BLOCK_ENDS, len(data))])
    return Blocks(tuple([seed := xxh3_64_intdigest(piece, seed) for piece in pieces]), BLOCK_ENDS)


def _chat(body: Mapping[str, object]) -> tuple[str, str, bool]:
    """The text up to the first user message, the text after it, and whether turns came before."""
    pieces: list[str] = []
    for name in ("tools", "functions"):
        definitions = body.get(name)
        if definitions:
            pieces += (_RECORD, name, _UNIT, _text(definitions))
    messages = body.get("messages")
    if not isinstance(messages, list):
        pieces.append(_text(messages))
        return "".join(pieces), "", False
    continues = False
    split = 0
    for message in messages:
        if not isinstance(message, dict):
            pieces += (_RECORD, _text(message))
            continue
        role = message.get("role")
        pieces += (_RECORD, role if isinstance(role, str) else _text(role), _UNIT)
        content = message.get("content")
        pieces.append(content if isinstance(content, str) else _content(content))
        calls = message.get("tool_calls")
        if calls:
            pieces += (_UNIT, _text(calls))
        if role == "assistant":
            continues = True
        elif role == "user" and not split:
            split = len(pieces)
    split = split or len(pieces)
    return "".join(pieces[:split]), "".join(pieces[split:]), continues


def _content(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(map(_part, content))
    return _text(content)


def _part(part: object) -> str:
    if isinstance(part, dict):
        text = part.get("text")
        if isinstance(text, str):
            return text
        return _UNIT + xxh3_128_hexdigest(_encode(_text(part))) * _MEDIA_REPEATS
    return _text(part)


def _plain(prompt: object) -> bytes:
    """A completion's prompt: text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return _encode(prompt)
    if isinstance(prompt, list):
        if prompt and all(type(token) is int for token in prompt):
            return _token_bytes(prompt)
        return b"\x1e".join(map(_plain, prompt))
    return b"" if prompt is None else _encode(_text(prompt))


def _token_bytes(tokens: Sequence[int]) -> bytes:
    """Four bytes a token, which is what a token of text weighs before anything is learned."""
    return b"".join([(token & 0xFFFFFFFF).to_bytes(4, "little") for token in tokens])


def _text(value: object) -> str:
    # Keys stay in the client's order, as templates render them.
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=repr)


def _encode(text: str) -> bytes:
    # JSON may carry lone surrogates; a prompt with one is the engine's to refuse.
    return text.encode("utf-8", "surrogatepass")
