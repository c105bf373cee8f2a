"""bfloat16 as numpy sees it: the upper half of a float32, in an unsigned 16-bit integer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
BFloat16Array = npt.NDArray[np.uint16]


def to_bfloat16(values: Float32Array) -> BFloat16Array:
    """Round to the nearest bfloat16, ties to even. Finite values only: weights hold no NaN."""
    bits = np.asarray(values, dtype=np.float32, order="C").view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    return rounded.astype(np.uint16)


def from_bfloat16(values: BFloat16Array) -> Float32Array:
    """The same values in float32."""
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
