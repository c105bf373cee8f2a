"""A predictor as bytes: ``.pqm`` files, small enough for a ConfigMap and safe to load.

    "PQM1" | SHA-256 of the rest, 32 bytes | zlib( header length, 4 bytes | header, JSON | arrays )

The arrays lie one behind the other in little-endian order, their shapes follow from the header.
Nothing in it is code. A reader bounds what it allocates by the header before it allocates, and
answers every other content with an ``ArtefactError``. The checksum finds damage, not forgery:
who may write the ConfigMap may change the predictor.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from typing import TYPE_CHECKING, Final

import numpy as np

from pointsman_serving.quality.predictor import MOST_MODELS, MOST_TASKS, Weights
from pointsman_serving.quality.windows import LENGTH_BANDS, WINDOW_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BYTES: Final = 700_000
"""A ConfigMap holds 1 MiB, in base64 with its other fields."""
FORMAT: Final = 1

_MAGIC: Final = b"PQM"
_VERSION: Final = str(FORMAT).encode()
_CHECKSUM_BYTES: Final = 32
_LENGTH_BYTES: Final = 4
_MOST_HEADER_BYTES: Final = 128 * 1024
_MOST_NAME_CHARACTERS: Final = 253
_MOST_METRICS: Final = 64
_MOST_TABLE_BITS: Final = 18
_MOST_CELLS: Final = 1 << 23
"""Rows times columns: 32 MiB in a gateway."""
_MOST_COUNT: Final = 10**12


class ArtefactError(ValueError):
    """Bytes that are not a predictor, or a predictor that may not be written."""


def pack(weights: Weights) -> bytes:
    """The bytes of a predictor.

    Raises:
        ArtefactError: they are more than ``MOST_BYTES``.
    """
    _check_cells(weights.table_bits, weights.table.shape[1])
    header = {
        "window_bytes": WINDOW_BYTES,
        "models": list(weights.models),
        "tasks": list(weights.tasks),
        "table_bits": weights.table_bits,
        "columns": int(weights.table.shape[1]),
        "trained_at": weights.trained_at,
        "prompts": weights.prompts,
        "scores": weights.scores,
        "metrics": dict(weights.metrics),
    }
    encoded = json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    content = b"".join(
        (
            len(encoded).to_bytes(_LENGTH_BYTES, "little"),
            encoded,
            # A column's bytes are alike, so that they compress better side by side.
            np.ascontiguousarray(weights.table.T, "<i1").tobytes(),
            *(
                np.ascontiguousarray(array, "<f4").tobytes()
                for array in (weights.units, weights.lengths, weights.means, weights.priors)
            ),
        )
    )
    body = zlib.compress(content, 9)
    data = _MAGIC + _VERSION + hashlib.sha256(body).digest() + body
    if len(data) > MOST_BYTES:
        raise ArtefactError(
            f"the predictor has {len(data):,} bytes, more than the {MOST_BYTES:,} that fit into a "
            f"ConfigMap: a table of 2^{weights.table_bits} rows and {weights.table.shape[1]} "
            f"columns for {len(weights.tasks)} tasks and {len(weights.models)} models. Halve the "
            f"table with --table-bits {weights.table_bits - 1}, or merge tasks"
        )
    return data


def unpack(data: bytes) -> Weights:
    """The predictor in some bytes.

    Raises:
        ArtefactError: they are not one; the message says what is wrong.
    """
    if len(data) > MOST_BYTES:
        raise ArtefactError(
            f"{len(data):,} bytes are more than a predictor may have ({MOST_BYTES:,}); fit it "
            "again with a smaller --table-bits or fewer tasks"
        )
    start = len(_MAGIC) + len(_VERSION)
    if not data.startswith(_MAGIC) or len(data) < start + _CHECKSUM_BYTES:
        raise ArtefactError(
            f"not a quality predictor: it begins with {data[:8]!r}, not with "
            f"{_MAGIC + _VERSION!r}; make one with `pointsman quality fit`"
        )
    version = data[len(_MAGIC) : start]
    if version != _VERSION:
        raise ArtefactError(
            f"the predictor's format is {version!r} and this version reads {_VERSION!r}; fit it "
            "again with this version of pointsman, or upgrade the gateway"
        )
    body = data[start + _CHECKSUM_BYTES :]
    if hashlib.sha256(body).digest() != data[start : start + _CHECKSUM_BYTES]:
        raise ArtefactError(
            "the predictor is damaged: its checksum does not match its content; copy it again"
        )
    return _Content(body).weights()


def _check_cells(table_bits: int, columns: int) -> None:
    cells = columns << table_bits
    if cells > _MOST_CELLS:
        raise ArtefactError(
            f"a table of 2^{table_bits} rows and {columns} columns has {cells:,} cells, more than "
            f"the {_MOST_CELLS:,} allowed; fit with a smaller --table-bits"
        )


class _Content:
    """Reads the compressed part, never more of it than the header accounts for."""

    def __init__(self, body: bytes) -> None:
        self._inflate = zlib.decompressobj()
        self._rest = body

    def weights(self) -> Weights:
        length = int.from_bytes(self._take(_LENGTH_BYTES), "little")
        if not 0 < length <= _MOST_HEADER_BYTES:
            raise ArtefactError(f"the predictor's header has {length} bytes")
        header = _Header(self._take(length))
        models, tasks = header.names("models", MOST_MODELS), header.names("tasks", MOST_TASKS)
        window_bytes = header.count("window_bytes", 1, 8)
        if window_bytes != WINDOW_BYTES:
            raise ArtefactError(
                f"the predictor was trained on windows of {window_bytes} bytes and this version "
                f"reads {WINDOW_BYTES}; fit it again"
            )
        bits = header.count("table_bits", 1, _MOST_TABLE_BITS)
        columns = header.count("columns", len(tasks), len(tasks) + len(models))
        if columns not in (len(tasks), len(tasks) + len(models)):
            raise ArtefactError(f"the predictor's header has columns = {columns}")
        _check_cells(bits, columns)
        raw = self._take(columns << bits)
        table = np.frombuffer(raw, "<i1").reshape(columns, 1 << bits).T
        units = self._floats(columns)
        lengths = self._floats(LENGTH_BANDS * columns).reshape(LENGTH_BANDS, columns)
        means = self._floats(len(tasks) * len(models)).reshape(len(tasks), len(models))
        priors = self._floats(len(models))
        self._end()
        for name, array in (("means", means), ("priors", priors)):
            if not ((array >= 0.0) & (array <= 1.0)).all():
                raise ArtefactError(f"the predictor's {name} are not all from 0 to 1")
        return Weights(
            models=models,
            tasks=tasks,
            table_bits=bits,
            table=np.ascontiguousarray(table, np.int8),
            units=units,
            lengths=lengths,
            means=means,
            priors=priors,
            trained_at=header.text("trained_at"),
            prompts=header.count("prompts", 0, _MOST_COUNT),
            scores=header.count("scores", 0, _MOST_COUNT),
            metrics=header.metrics(),
        )

    def _take(self, size: int) -> bytes:
        try:
            found = self._inflate.decompress(self._rest, size)
            self._rest = self._inflate.unconsumed_tail
            while len(found) < size and self._rest:
                more = self._inflate.decompress(self._rest, size - len(found))
                self._rest = self._inflate.unconsumed_tail
                found += more
        except zlib.error as error:
            raise ArtefactError(f"the predictor cannot be decompressed ({error})") from None
        if len(found) < size:
            raise ArtefactError("the predictor ends before its last array")
        return found

    def _floats(self, count: int) -> NDArray[np.float32]:
        array = np.frombuffer(self._take(4 * count), "<f4").astype(np.float32)
        # Far beyond what a fit finds; larger numbers would overflow in a sum of many rows.
        if not (np.abs(array) < 1e6).all():
            raise ArtefactError("the predictor has numbers that are not finite or too large")
        return array

    def _end(self) -> None:
        try:
            more = self._inflate.decompress(self._rest, 1)
        except zlib.error as error:
            raise ArtefactError(f"the predictor cannot be decompressed ({error})") from None
        if more or not self._inflate.eof or self._inflate.unused_data:
            raise ArtefactError("the predictor has something behind its last array")


class _Header:
    def __init__(self, encoded: bytes) -> None:
        try:
            members = json.loads(encoded)
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"the predictor's header is not JSON ({error})") from None
        if not isinstance(members, dict):
            raise ArtefactError("the predictor's header is not an object")
        self._members: dict[str, object] = members

    def member(self, name: str) -> object:
        if name not in self._members:
            raise ArtefactError(f"the predictor's header has no {name}")
        return self._members[name]

    def names(self, member: str, most: int) -> tuple[str, ...]:
        value = self.member(member)
        if (
            not isinstance(value, list)
            or not 0 < len(value) <= most
            or not all(isinstance(n, str) and 0 < len(n) <= _MOST_NAME_CHARACTERS for n in value)
            or len(set(value)) < len(value)
        ):
            raise ArtefactError(
                f"the predictor's header must name 1 to {most} different {member}, each of 1 to "
                f"{_MOST_NAME_CHARACTERS} characters"
            )
        return tuple(value)

    def count(self, member: str, least: int, most: int) -> int:
        value = self.member(member)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ArtefactError(
                f"the predictor's header has {member} = {str(value)[:40]}; allowed are {least} to "
                f"{most}"
            )
        return value

    def text(self, member: str) -> str:
        value = self.member(member)
        if not isinstance(value, str) or len(value) > _MOST_NAME_CHARACTERS:
            raise ArtefactError(f"the predictor's header has no usable {member}")
        return value

    def metrics(self) -> dict[str, float]:
        value = self.member("metrics")
        if not isinstance(value, dict) or len(value) > _MOST_METRICS:
            raise ArtefactError("the predictor's header has no usable metrics")
        metrics = {}
        for name, number in value.items():
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ArtefactError(f"the predictor's metric {name[:40]!r} is not a number")
            metrics[name[:_MOST_NAME_CHARACTERS]] = _finite(name, number)
        return metrics


def _finite(name: str, number: float) -> float:
    try:
        found = float(number)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ArtefactError(f"the predictor's metric {name[:40]!r} is not finite")
    return found
