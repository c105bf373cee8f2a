from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.gateway.kv.wire import KvPorts, decode_events, parse_ports
from pointsman_serving.routing.kv.events import AllCleared, BlocksRemoved, BlocksStored
from tests.gateway.kv_publisher import batch, removed, stored

TOKENS = list(range(32))
CLEARED = {"type": "AllBlocksCleared"}


def test_events_are_read_as_vllm_writes_them() -> None:
    events = decode_events(batch(stored(TOKENS, salt="s"), removed(TOKENS, first=1), CLEARED))
    first, second, third = events
    assert isinstance(first, BlocksStored)
    assert (TOKENS, 16, None, [["s"], None]) == (
        first.token_ids,
        first.block_tokens,
        first.parent,
        first.extra_keys,
    )
    assert BlocksRemoved(hashes=first.hashes[1:]) == second
    assert AllCleared() == third


@pytest.mark.slow
def test_events_are_read_when_vllm_itself_has_written_them() -> None:
    kv_events = pytest.importorskip("vllm.distributed.kv_events")
    import msgspec

    written = kv_events.KVEventBatch(
        ts=1.0,
        events=[
            kv_events.BlockStored(
                block_hashes=[b"\x01" * 32, 7],
                parent_block_hash=b"\x02" * 32,
                token_ids=[1, 2, 3, 4],
                block_size=2,
                lora_id=None,
                medium="GPU",
                lora_name=None,
                extra_keys=[("salt",), None],
                group_idx=0,
            ),
            kv_events.BlockRemoved(block_hashes=[7], medium="GPU"),
            kv_events.AllBlocksCleared(),
        ],
        data_parallel_rank=0,
    )
    assert [
        BlocksStored(
            hashes=[b"\x01" * 32, 7],
            parent=b"\x02" * 32,
            token_ids=[1, 2, 3, 4],
            block_tokens=2,
            extra_keys=[["salt"], None],
        ),
        BlocksRemoved(hashes=[7]),
        AllCleared(),
    ] == decode_events(msgspec.msgpack.encode(written))


@pytest.mark.parametrize("change", [{"medium": "CPU"}, {"group_idx": 1}])
def test_event_is_left_out_when_it_is_not_about_the_accelerators_prompts(
    change: dict[str, object],
) -> None:
    assert [] == decode_events(batch(stored(TOKENS) | change, removed(TOKENS) | change))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"nonsense",
        b"\x81" * 100_000,
        batch({"type": "BlockLost"}),
        batch({"block_hashes": []}),
        batch(stored(TOKENS) | {"token_ids": [-1]}),
        batch(stored(TOKENS) | {"token_ids": [2**40]}),
        batch(stored(TOKENS) | {"block_size": 0}),
        batch(stored(TOKENS) | {"block_hashes": ["text"]}),
        batch()[:-2],
    ],
)
def test_batch_is_refused_when_it_is_none(payload: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        decode_events(payload)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(payload: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_events(payload)


def test_ports_are_read_from_the_header() -> None:
    assert KvPorts(events=40001, replay=5) == parse_ports(b"40001;replay=5")


@pytest.mark.parametrize(
    "value",
    [b"", b"1", b"1;replay=", b"0;replay=1", b"1;replay=65536", b"1;replay=2;x", b"a;replay=b"],
)
def test_ports_are_none_when_the_header_is_no_such(value: bytes) -> None:
    assert parse_ports(value) is None
