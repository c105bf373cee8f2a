"""Traces in Mooncake's format: one JSON object a line, with the prompt's blocks as ids.

Source: kvcache-ai/Mooncake, FAST25 traces. ``timestamp`` is in milliseconds; ``hash_ids`` has one
id for each block of 512 tokens, and equal ids mean an equal prompt up to that block's end.

The public traces state times by ticks of three seconds, ten requests or more on each. Nobody
sends like that, and a rule that does not look at load suffers from it most. So the requests of a
tick are spread over it by chance, in their order.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pointsman_serving.simulator.request import BLOCK_TOKENS, SimRequest
from pointsman_serving.simulator.workloads.reading import TraceError, read_lines

if TYPE_CHECKING:
    from pathlib import Path


def load_mooncake(
    path: Path, *, limit: int | None = None, spread_seed: int | None = 0
) -> list[SimRequest]:
    """Read a trace, in its order; times count from its first request.

    A prompt or answer of 0 tokens counts as 1: an engine computes no less.

    Args:
        limit: read so many requests at most; None: all.
        spread_seed: of the chance by which the requests of one tick are spread over it; None:
            they come together, as recorded.

    Raises:
        TraceError: a line is not such an object, or a field is missing or no such value.
    """
    requests: list[SimRequest] = []
    first: float | None = None
    before = 0.0
    for number, line in enumerate(read_lines(path), start=1):
        if limit is not None and len(requests) >= limit:
            break
        if not line.strip():
            continue
        entry = _object(path, number, line)
        timestamp = _number(path, number, entry, "timestamp")
        first = timestamp if first is None else first
        if timestamp < before:
            problem = f"is {timestamp:g}, and {before:g} on the line before; sort the lines by it"
            raise TraceError(path, number, "timestamp", problem)
        before = timestamp
        prompt_tokens = max(1, _count(path, number, entry, "input_length"))
        requests.append(
            SimRequest(
                request_id=f"m{number}",
                arrival_seconds=(timestamp - first) / 1000.0,
                prompt_tokens=prompt_tokens,
                output_tokens=max(1, _count(path, number, entry, "output_length")),
                blocks=_blocks(path, number, entry, prompt_tokens),
            )
        )
    if not requests:
        raise TraceError(path, 0, "", "holds no request; give a trace with one at least")
    return requests if spread_seed is None else _spread(requests, random.Random(spread_seed))


def _spread(requests: list[SimRequest], source: random.Random) -> list[SimRequest]:
    times = sorted({each.arrival_seconds for each in requests})
    tick = min((after - before for before, after in itertools.pairwise(times)), default=0.0)
    spread = []
    for at, group in itertools.groupby(requests, key=lambda each: each.arrival_seconds):
        together = list(group)
        offsets = sorted(source.uniform(0.0, tick) for _ in together)
        spread += [
            replace(each, arrival_seconds=at + offset)
            for each, offset in zip(together, offsets, strict=True)
        ]
    return spread


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise TraceError(path, number, "", f"is not JSON ({error}); give one object a line") from (
            error
        )
    if not isinstance(entry, dict):
        raise TraceError(path, number, "", f"is a {type(entry).__name__}; give one object a line")
    return entry


def _value(path: Path, number: int, entry: dict[str, Any], name: str) -> Any:
    if name not in entry:
        raise TraceError(path, number, name, f"is missing; the line has {sorted(entry)}")
    return entry[name]


def _number(path: Path, number: int, entry: dict[str, Any], name: str) -> float:
    value = _value(path, number, entry, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TraceError(path, number, name, f"is {value!r}; give a number")
    if value < 0:
        raise TraceError(path, number, name, f"is {value!r}; give 0 or more")
    return float(value)


def _count(path: Path, number: int, entry: dict[str, Any], name: str) -> int:
    value = _value(path, number, entry, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TraceError(path, number, name, f"is {value!r}; give a whole number of tokens")
    if value < 0:
        raise TraceError(path, number, name, f"is {value}; give 0 tokens or more")
    return value


def _blocks(path: Path, number: int, entry: dict[str, Any], prompt_tokens: int) -> tuple[int, ...]:
    value = _value(path, number, entry, "hash_ids")
    if not isinstance(value, list):
        raise TraceError(path, number, "hash_ids", f"is {value!r}; give a list of whole numbers")
    for position, block in enumerate(value):
        if isinstance(block, bool) or not isinstance(block, int) or block < 0:
            raise TraceError(
                path, number, f"hash_ids[{position}]", f"is {block!r}; give a whole number from 0"
            )
    most = -(-prompt_tokens // BLOCK_TOKENS)
    if len(value) > most:
        raise TraceError(
            path, number, "hash_ids", f"has {len(value)} ids and input_length {prompt_tokens} "
            f"fills {most} blocks; give one id for each {BLOCK_TOKENS} tokens",
        )  # fmt: skip
    return tuple(value)
