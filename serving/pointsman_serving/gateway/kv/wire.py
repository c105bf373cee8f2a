"""vLLM's KV cache events as they are on the wire: a sequence number, and a batch in msgpack.

Source: vLLM's ``vllm.distributed.kv_events``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from pointsman_serving.routing.kv.events import AllCleared, BlocksRemoved, BlocksStored, KvEvent

# What the engine's accelerator holds; a tier behind it answers no prompt by itself.
_MEDIA = (None, "GPU")
# Of a model with several kinds of attention, the group that a prompt's beginning is found by.
_GROUPS = (None, 0)

_VALUE = re.compile(rb"([1-9][0-9]{0,4});replay=([1-9][0-9]{0,4})")

_Token = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Size = Annotated[int, msgspec.Meta(ge=1, le=65_536)]


class _Stored(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[int | bytes]
    token_ids: list[_Token]
    block_size: _Size
    parent_block_hash: int | bytes | None = None
    medium: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[_Stored | _Removed | _Cleared]


_decode = msgspec.msgpack.Decoder(_Batch).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPorts:
    """Where a replica publishes."""

    events: int
    replay: int


def parse_ports(value: bytes) -> KvPorts | None:
    """Read an ``x-pointsman-kv-events`` header; None where it is none."""
    match = _VALUE.fullmatch(value)
    if match is None:
        return None
    events, replay = int(match[1]), int(match[2])
    return KvPorts(events=events, replay=replay) if max(events, replay) < 65_536 else None


def decode_events(payload: bytes) -> list[KvEvent]:
    """The events of one batch that are about what prompts find cached.

    Raises:
        ValueError: it is no batch of events.
    """
    try:
        batch = _decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"a batch of events cannot be read: {error}") from error
    found: list[KvEvent] = []
    for event in batch.events:
        if isinstance(event, _Cleared):
            found.append(AllCleared())
        elif event.medium not in _MEDIA or event.group_idx not in _GROUPS:
            continue
        elif isinstance(event, _Removed):
            found.append(BlocksRemoved(hashes=event.block_hashes))
        else:
            found.append(
                BlocksStored(
                    hashes=event.block_hashes,
                    parent=event.parent_block_hash,
                    token_ids=event.token_ids,
                    block_tokens=event.block_size,
                    extra_keys=event.extra_keys or (),
                )
            )
    return found
