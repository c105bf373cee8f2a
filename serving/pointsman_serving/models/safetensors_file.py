"""Reading and writing safetensors files of bfloat16 with numpy alone.

The format: eight bytes with the length of a JSON header, the header (name, dtype, shape and byte
range of each tensor), then the bytes. numpy has no bfloat16, and importing torch for it would take
longer than the work.
"""

from __future__ import annotations

import json
import math
import mmap
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pointsman_serving.models.bfloat16 import BFloat16Array

_BFLOAT16 = "BF16"
_BYTES = 2


class SafetensorsError(ValueError):
    """A file that is not what is expected of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A tensor to write: its bytes are asked for when their turn comes."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], BFloat16Array]


def write_safetensors(
    path: Path,
    entries: Sequence[TensorEntry],
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write bfloat16 tensors, loading a few at a time on threads.

    Args:
        path: the file to write.
        entries: in the order of the file.
        workers: threads that load; at most twice as many tensors are held in memory.
        progress: called with (tensors written, tensors in all).

    Raises:
        SafetensorsError: an entry's data is not of its stated shape.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        size = math.prod(entry.shape) * _BYTES
        header[entry.name] = {
            "dtype": _BFLOAT16,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file, ThreadPoolExecutor(workers) as pool:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        pending: deque[tuple[TensorEntry, Future[BFloat16Array]]] = deque()
        upcoming = iter(entries)
        for done in range(len(entries)):
            while len(pending) < 2 * workers and (coming := next(upcoming, None)) is not None:
                pending.append((coming, pool.submit(coming.load)))
            entry, future = pending.popleft()
            data = future.result()
            if data.shape != entry.shape or data.dtype != np.uint16:
                message = (
                    f"{entry.name}: data is {data.dtype} {data.shape}, "
                    f"stated is bfloat16 {entry.shape}"
                )
                raise SafetensorsError(message)
            file.write(data.tobytes() if not data.flags.c_contiguous else data.data)
            if progress is not None:
                progress(done + 1, len(entries))


def read_safetensors(path: Path) -> dict[str, BFloat16Array]:
    """Map a file of bfloat16 tensors into memory, read-only; nothing is read before it is used.

    Raises:
        SafetensorsError: the file is cut short, is no safetensors file or holds another dtype.
    """
    with path.open("rb") as file:
        try:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            message = f"{path} is empty; make the model again with --force"
            raise SafetensorsError(message) from error
    return _tensors(path, view)


def _tensors(path: Path, view: mmap.mmap) -> dict[str, BFloat16Array]:
    length = int.from_bytes(view[:8], "little")
    if 8 + length > len(view):
        message = f"{path} is damaged (cut short in its header); make the model again with --force"
        raise SafetensorsError(message)
    try:
        header = json.loads(view[8 : 8 + length])
        header.pop("__metadata__", None)
        start = 8 + length
        tensors: dict[str, BFloat16Array] = {}
        for name, entry in header.items():
            if entry["dtype"] != _BFLOAT16:
                message = (
                    f"{path}: tensor {name} is {entry['dtype']}, allowed is {_BFLOAT16}; "
                    "convert the model to bfloat16 first"
                )
                raise SafetensorsError(message)
            begin, end = entry["data_offsets"]
            data = np.frombuffer(view, np.uint16, (end - begin) // _BYTES, start + begin)
            tensors[name] = data.reshape(entry["shape"])
    except SafetensorsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path} is damaged ({error}); make the model again with --force"
        raise SafetensorsError(message) from error
    return tensors
