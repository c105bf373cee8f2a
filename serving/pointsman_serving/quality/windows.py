"""A prompt as rows of a table of weights: one row for every window of 4 bytes.

No tokenizer, no lower case, no words: on the scores of nine models over 14 tasks, windows of
bytes tell the tasks apart as well as words do, windows of 4 bytes within .1% of those of 3 and
5 together at half the cost, and numpy hashes them all in one go. Hashes are not made unique: a
window that comes twice weighs twice, which predicts better than once and costs less. Of a long
prompt a bounded sample is read, so that the cost is bounded too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW_BYTES: Final = 4
SAMPLE_BYTES: Final = 1_280
"""What is read of a prompt at most."""
LENGTH_BANDS: Final = 32
"""Lengths are told apart by half octaves."""

_HEAD: Final = SAMPLE_BYTES // 2
_TAIL: Final = SAMPLE_BYTES // 4
_MIDDLE_PIECES: Final = 4
_MIDDLE: Final = (SAMPLE_BYTES - _HEAD - _TAIL) // _MIDDLE_PIECES

# The first windows hold the prompt's beginning alone and the last its end: both tell much.
_MARGIN: Final = bytes(WINDOW_BYTES - 1)
# Fibonacci hashing: the golden ratio spreads neighbours over the table's high bits.
_SPREAD: Final = np.uint32(0x9E3779B1)
_HASH_BITS: Final = 32

_Text = TypeVar("_Text", str, bytes)


def window_rows(text: str, table_bits: int) -> NDArray[np.int64]:
    """The rows of a table of ``2**table_bits`` that a text touches; a row may come repeatedly.

    Returns:
        One number for each window: never empty, at most ``SAMPLE_BYTES + 3``.
    """
    data = _sample(_sample(text).encode(errors="replace"))
    data = b"".join((_MARGIN, data, _MARGIN))
    # Four bytes from every byte on, without a loop.
    windows = np.ndarray((len(data) - WINDOW_BYTES + 1,), "<u4", data, strides=(1,))
    hashes = windows * _SPREAD
    hashes >>= np.uint32(_HASH_BITS - table_bits)
    return hashes.astype(np.int64)


def length_band(text: str) -> int:
    """Which of the half octaves of lengths a text is in, from 0 to 31."""
    return min(int(2.0 * math.log2(len(text) + 1)), LENGTH_BANDS - 1)


def _sample(text: _Text) -> _Text:
    """The beginning, the end and four pieces between them of a text that is too long."""
    length = len(text)
    if length <= SAMPLE_BYTES:
        return text
    pieces = [text[:_HEAD]]
    between = length - _HEAD - _TAIL
    for piece in range(_MIDDLE_PIECES):
        start = _HEAD + between * (2 * piece + 1) // (2 * _MIDDLE_PIECES) - _MIDDLE // 2
        pieces.append(text[start : start + _MIDDLE])
    pieces.append(text[length - _TAIL :])
    return text[:0].join(pieces)
