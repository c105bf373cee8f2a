from __future__ import annotations

import dataclasses
import hashlib
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.quality.artefact import MOST_BYTES, ArtefactError, pack, unpack
from pointsman_serving.quality.predictor import QualityPredictor, Weights
from tests.unit.quality.prompts import fitted, prompt


def content() -> bytes:
    return zlib.decompress(pack(fitted())[36:])


def signed(content: bytes) -> bytes:
    """Bytes with a right checksum, as somebody would make them who means harm."""
    return sealed(zlib.compress(content))


def sealed(body: bytes) -> bytes:
    return b"PQM1" + hashlib.sha256(body).digest() + body


def with_header(**members: object) -> bytes:
    """The artefact with members of the header changed; None takes one away."""
    whole = content()
    length = int.from_bytes(whole[:4], "little")
    header = json.loads(whole[4 : 4 + length]) | members
    header = {name: value for name, value in header.items() if value is not None}
    encoded = json.dumps(header).encode()
    return signed(len(encoded).to_bytes(4, "little") + encoded + whole[4 + length :])


@pytest.mark.parametrize("labelled", [True, False])
def test_predictions_are_the_same_when_unpacked(labelled: bool) -> None:
    weights = fitted(labelled=labelled)
    found = unpack(pack(weights))
    for name in ("models", "tasks", "trained_at", "prompts", "scores", "table_bits"):
        assert getattr(weights, name) == getattr(found, name)
    assert dict(weights.metrics) == dict(found.metrics)
    text = prompt("prose", 1_234)
    assert QualityPredictor(weights).predict(text) == QualityPredictor(found).predict(text)


def test_bytes_are_the_same_when_packed_again() -> None:
    assert pack(fitted()) == pack(unpack(pack(fitted())))


def test_size_and_remedy_are_told_when_it_does_not_fit_a_config_map() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(-127, 127, (1 << 18, 3)).astype(np.int8)
    large = dataclasses.replace(fitted(), table=noise, table_bits=18)
    with pytest.raises(ArtefactError, match=r"has 7\d\d,\d{3} bytes.*700,000.*--table-bits 17"):
        pack(large)


def test_size_is_told_when_the_bytes_are_too_many() -> None:
    with pytest.raises(ArtefactError, match="700,001 bytes are more than"):
        unpack(pack(fitted()).ljust(MOST_BYTES + 1, b"\0"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begins with b''"),
        (b"PK\x03\x04" + bytes(100), "not a quality predictor"),
        (b"PQM1" + bytes(10), "not a quality predictor"),
        (b"PQM2" + bytes(100), "format is b'2'.*reads b'1'"),
        (b"PQM1" + bytes(100), "damaged"),
        (sealed(b"not zlib"), "cannot be decompressed"),
        (sealed(b""), "ends before"),
        (signed(b""), "ends before"),
        (signed(b"\xff\xff\xff\xff"), "header has 4294967295 bytes"),
        (signed(b"\2\0\0\0{]"), "header is not JSON"),
        (signed(b"\2\0\0\0[]"), "header is not an object"),
        (signed(b"\2\0\0\0\xff\xff"), "header is not JSON"),
        (signed((70_000).to_bytes(4, "little") + b"[" * 70_000), "header is not JSON"),
        (signed(content()[:-1]), "ends before"),
        (signed(content() + b"x"), "behind its last array"),
        (sealed(zlib.compress(content()) + b"x"), "behind its last array"),
    ],
)
def test_the_error_says_what_is_wrong_when_bytes_are_not_a_predictor(
    data: bytes, words: str
) -> None:
    with pytest.raises(ArtefactError, match=words):
        unpack(data)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"models": None}, "no models"),
        ({"models": []}, "1 to 256 different models"),
        ({"models": ["a", "a", "b"]}, "different models"),
        ({"models": ["a", 2, "b"]}, "different models"),
        ({"models": ["a", "", "b"]}, "different models"),
        ({"models": ["a", "b", "c" * 254]}, "different models"),
        ({"tasks": [str(n) for n in range(65)]}, "1 to 64 different tasks"),
        ({"window_bytes": 5}, "windows of 5 bytes"),
        ({"table_bits": 62}, "table_bits = 62; allowed are 1 to 18"),
        ({"table_bits": 10**4_000}, "not JSON|table_bits"),
        ({"table_bits": 12.5}, "table_bits"),
        ({"table_bits": True}, "table_bits"),
        ({"columns": 5}, "columns = 5"),
        ({"columns": -1}, "columns = -1"),
        ({"prompts": "many"}, "prompts"),
        ({"trained_at": 3}, "trained_at"),
        ({"metrics": {"regret": "small"}}, "metric 'regret' is not a number"),
        ({"metrics": {"regret": float("nan")}}, "metric 'regret' is not finite"),
        ({"metrics": {"regret": 10**400}}, "metric 'regret' is not finite"),
        ({"metrics": []}, "metrics"),
    ],
)
def test_the_member_is_named_when_the_header_is_wrong(
    members: dict[str, object], words: str
) -> None:
    with pytest.raises(ArtefactError, match=words):
        unpack(with_header(**members))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, -3.0) for name in ("means", "priors")),
        *(
            (name, value)
            for name in ("means", "priors", "units", "lengths")
            for value in (np.nan, np.inf, 1e30)
        ),
    ],
)
def test_numbers_are_refused_when_no_fit_finds_them(name: str, value: float) -> None:
    array = getattr(fitted(), name).copy()
    array.flat[-1] = value
    with pytest.raises(ArtefactError, match=r"not finite or too large|not all from 0 to 1"):
        unpack(pack(dataclasses.replace(fitted(), **{name: array})))


def test_little_is_allocated_when_a_small_file_inflates_to_much() -> None:
    bomb = signed(b"\2\0\0\0{}" + bytes(50_000_000))
    assert len(bomb) < MOST_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError, match="no models"):
            unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_cells_are_told_when_the_table_is_too_large() -> None:
    tasks = [str(n) for n in range(64)]
    with pytest.raises(ArtefactError, match=r"2\^18 rows and 64 columns has 16,777,216 cells"):
        unpack(with_header(table_bits=18, tasks=tasks, columns=64))
    wide = np.zeros((1 << 18, 64), np.int8)
    with pytest.raises(ArtefactError, match=r"more than the 8,388,608 allowed"):
        pack(dataclasses.replace(fitted(), table=wide, table_bits=18))


@given(st.integers(0, 1 << 30), st.binary(min_size=1, max_size=40), st.booleans())
def test_nothing_but_an_artefact_error_comes_when_bytes_are_changed(
    at: int, change: bytes, resign: bool
) -> None:
    data = content() if resign else pack(fitted())
    # Half of the changes hit the header, where they do most.
    at %= len(data) if at % 2 else 600
    data = data[:at] + change + data[at + len(change) :]
    try:
        weights: Weights = unpack(signed(data) if resign else data)
    except ArtefactError:
        return
    found = QualityPredictor(weights).predict("any text")
    assert all(0.0 <= quality <= 1.0 for quality in found.values())
