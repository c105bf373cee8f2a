"""Traces in the format of Azure's public data: CSV, lengths only, no prefixes.

Source: Azure/AzurePublicDataset, LLM inference traces 2023.
"""

from __future__ import annotations

import csv
from datetime import datetime
from typing import TYPE_CHECKING, Final

from pointsman_serving.simulator.request import SimRequest
from pointsman_serving.simulator.workloads.reading import TraceError, read_lines

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def load_azure(path: Path, *, limit: int | None = None) -> list[SimRequest]:
    """Read a trace, in its order; times count from its first request.

    A prompt or answer of 0 tokens counts as 1: an engine computes no less.

    Args:
        limit: read so many requests at most; None: all.

    Raises:
        TraceError: a column or a field is missing, or is no such value.
    """
    rows = csv.reader(read_lines(path))
    header = [name.strip() for name in next(rows)]
    columns = []
    for name in _COLUMNS:
        if name not in header:
            raise TraceError(path, 1, name, f"is no column; the columns are {header}")
        columns.append(header.index(name))
    requests: list[SimRequest] = []
    first: datetime | None = None
    for row in rows:
        if limit is not None and len(requests) >= limit:
            break
        if not row:
            continue
        number = rows.line_num
        if len(row) != len(header):
            raise TraceError(
                path, number, "", f"has {len(row)} fields; the header has {len(header)} columns"
            )
        at_text, prompt_text, output_text = (row[column].strip() for column in columns)
        at = _time(path, number, at_text)
        first = at if first is None else first
        if at < first:
            raise TraceError(
                path, number, "TIMESTAMP", f"is {at_text}, before the first row's; sort the rows"
            )
        requests.append(
            SimRequest(
                request_id=f"a{number}",
                arrival_seconds=(at - first).total_seconds(),
                prompt_tokens=max(1, _count(path, number, "ContextTokens", prompt_text)),
                output_tokens=max(1, _count(path, number, "GeneratedTokens", output_text)),
            )
        )
    if not requests:
        raise TraceError(path, 0, "", "holds no request; give a trace with one at least")
    return requests


def _time(path: Path, number: int, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise TraceError(
            path,
            number,
            "TIMESTAMP",
            f"is {text!r}; give a date and a time such as 2023-11-16 18:15:46.6805900",
        ) from None


def _count(path: Path, number: int, name: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise TraceError(
            path, number, name, f"is {text!r}; give a whole number of tokens"
        ) from None
    if value < 0:
        raise TraceError(path, number, name, f"is {value}; give 0 tokens or more")
    return value
