"""A prompt's windows: artefacts are trained on these numbers, so they must never change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.quality.windows import SAMPLE_BYTES, length_band, window_rows


def _reference(text: str, bits: int) -> list[int]:
    data = bytes(3) + text.encode() + bytes(3)
    rows = []
    for start in range(len(data) - 3):
        number = int.from_bytes(data[start : start + 4], "little")
        rows.append((number * 0x9E3779B1 & (1 << 32) - 1) >> (32 - bits))
    return rows


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.integers(10, 18))
def test_rows_are_hashes_of_four_bytes_when_the_text_is_short(text: str, bits: int) -> None:
    assert _reference(text, bits) == window_rows(text, bits).tolist()


def test_rows_are_those_of_earlier_versions_when_nothing_changed() -> None:
    golden = [12800, 13490, 8436, 4128, 14640]
    assert golden == window_rows("Hi", 14).tolist()


@pytest.mark.parametrize("text", ["", "\ud800 alone", "日本語" * 9_000, "a" * 10**6])
def test_rows_are_bounded_when_the_text_is_odd(text: str) -> None:
    rows = window_rows(text, 14)
    assert 0 < len(rows) <= SAMPLE_BYTES + 3
    assert 0 <= rows.min() <= rows.max() < 1 << 14


@pytest.mark.parametrize("at", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_piece_is_read_when_it_is_a_quarter_of_a_long_text(at: float) -> None:
    plain, piece = "x" * 36_000, "def f():\n    return 1\n" * 600
    start = int(at * len(plain))
    mixed = set(window_rows(plain[:start] + piece + plain[start:], 14).tolist())
    new = set(window_rows(piece, 14).tolist()) - set(window_rows(plain, 14).tolist())
    assert len(mixed & new) >= 15


@pytest.mark.parametrize(("length", "band"), [(0, 0), (1, 2), (3, 4), (1_023, 20), (10**9, 31)])
def test_length_band_is_half_an_octave_wide(length: int, band: int) -> None:
    class Text(str):
        __slots__ = ()

        def __len__(self) -> int:
            return length

    assert band == length_band(Text())
