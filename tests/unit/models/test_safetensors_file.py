"""bfloat16 and safetensors without torch, checked with torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import torch as reference

from pointsman_serving.models.bfloat16 import from_bfloat16, to_bfloat16
from pointsman_serving.models.safetensors_file import (
    SafetensorsError,
    TensorEntry,
    read_safetensors,
    write_safetensors,
)

if TYPE_CHECKING:
    from pathlib import Path

FINITE = st.floats(width=32, min_value=-(2.0**127), max_value=2.0**127)


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=FINITE))
def test_bfloat16_rounds_as_torch_does(values: np.ndarray) -> None:
    expected = torch.from_numpy(values.copy()).bfloat16()

    rounded = to_bfloat16(values)

    assert torch.equal(expected.view(torch.int16), torch.from_numpy(rounded.view(np.int16)))
    assert torch.equal(expected.float(), torch.from_numpy(from_bfloat16(rounded)))


def entries(tensors: dict[str, np.ndarray]) -> list[TensorEntry]:
    return [
        TensorEntry(name=name, shape=data.shape, load=lambda data=data: to_bfloat16(data))
        for name, data in tensors.items()
    ]


def test_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {"a": (3, 5), "b": (), "c": (0, 4), "d": (7,)}
    tensors = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    seen: list[tuple[int, int]] = []

    write_safetensors(
        tmp_path / "t", entries(tensors), progress=lambda done, total: seen.append((done, total))
    )

    found = reference.load_file(tmp_path / "t")
    assert list(tensors) == sorted(found)
    for name, data in tensors.items():
        assert torch.equal(torch.from_numpy(data).bfloat16(), found[name])
    assert [(1, 4), (2, 4), (3, 4), (4, 4)] == seen


def test_reading_gives_what_was_written(tmp_path: Path) -> None:
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_safetensors(tmp_path / "t", entries({"a": data}))

    found = read_safetensors(tmp_path / "t")

    assert np.array_equal(data, from_bfloat16(found["a"]))


def test_reading_is_what_safetensors_writes(tmp_path: Path) -> None:
    data = torch.randn(4, 3).bfloat16()
    reference.save_file({"x": data}, tmp_path / "t")

    found = from_bfloat16(read_safetensors(tmp_path / "t")["x"])

    assert torch.equal(data.float(), torch.from_numpy(found))


def test_writing_refuses_when_data_is_of_another_shape(tmp_path: Path) -> None:
    wrong = TensorEntry(name="a", shape=(2,), load=lambda: np.zeros(3, np.uint16))

    with pytest.raises(SafetensorsError, match=r"a: data is uint16 \(3,\), stated is bfloat16"):
        write_safetensors(tmp_path / "t", [wrong])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x05\x00\x00\x00\x00\x00\x00\x00nojsn", "is damaged"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "is damaged"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "is damaged"),
    ],
)
def test_reading_names_the_file_when_it_is_damaged(
    content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / "t").write_bytes(content)

    with pytest.raises(SafetensorsError, match=says):
        read_safetensors(tmp_path / "t")


def test_reading_refuses_when_the_file_is_cut_short(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t", entries({"a": np.zeros((4, 4), np.float32)}))
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-2])

    with pytest.raises(SafetensorsError, match="is damaged"):
        read_safetensors(tmp_path / "t")


def test_reading_refuses_when_the_dtype_is_another(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "t").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))

    with pytest.raises(SafetensorsError, match="tensor a is F32, allowed is BF16"):
        read_safetensors(tmp_path / "t")
