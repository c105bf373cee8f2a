"""What a stream must have been, and in what an observed one differs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pointsman_serving.engines.openai_reply import Endpoint
from pointsman_serving.engines.simulated.options import SimulatedOptions
from pointsman_serving.engines.simulated.protocol import ModelText, plan_generation
from tests.chaos.stream import Observed

_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The answer to a body, known without asking an engine."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def expected_of(body: Mapping[str, object], options: SimulatedOptions) -> Expected:
    """What a Simulated engine says to a chat body at temperature 0, unbroken."""
    text = ModelText(
        model_name=options.model_name,
        seed=options.seed,
        max_model_len=options.max_model_len,
        block_tokens=options.profile.block_tokens,
        lengths=options.lengths,
    )
    plan = plan_generation(
        {**body, "model": options.model_name},
        Endpoint.CHAT,
        text,
        base_id="",
        engine_id="",
        created=0,
        sample=0,
    )
    return Expected(
        text="".join(plan.pieces),
        finish_reason=plan.finish_reason,
        prompt_tokens=len(plan.prompt),
        completion_tokens=len(plan.output),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One server-sent event and when its last byte came."""

    at: float
    data: bytes


def events_of(pieces: Iterable[tuple[float, bytes]]) -> tuple[list[Event], bytes]:
    """The data events of a body, and what follows the last whole event; comments are left out."""
    events: list[Event] = []
    rest = b""
    for at, piece in pieces:
        *whole, rest = (rest + piece).split(b"\n\n")
        events += [
            Event(at=at, data=event[5:].strip()) for event in whole if event.startswith(b"data:")
        ]
    return events, rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one stream."""

    flaws: tuple[str, ...]
    """In what it differs from one unbroken stream; empty: in nothing."""
    first_token_seconds: float
    longest_gap_seconds: float
    """Between two pieces of text, after the first."""
    seconds: float


def judge(observed: Observed, expected: Expected) -> Verdict:
    """Compare a stream with the one that it must look like."""
    events, rest = events_of(observed.pieces)
    flaws = list(_framing_flaws(observed, events, rest))
    chunks: list[tuple[float, Mapping[str, object]]] = []
    for event in events:
        if event.data == _DONE:
            continue
        try:
            decoded = json.loads(event.data)
        except ValueError:
            flaws.append(f"an event is no JSON: {event.data[:80]!r}")
            continue
        if "error" in decoded:
            flaws.append(f"an error event: {json.dumps(decoded['error'])[:200]}")
        else:
            chunks.append((event.at, decoded))
    if observed.status == 200:
        flaws += _chunk_flaws([chunk for _, chunk in chunks], expected)
    times = [at for at, chunk in chunks if _text_of(chunk)]
    ended = observed.ended_at or observed.started_at
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Verdict(
        flaws=tuple(flaws),
        first_token_seconds=(times[0] if times else ended) - observed.started_at,
        longest_gap_seconds=max(gaps, default=0.0),
        seconds=ended - observed.started_at,
    )


def _framing_flaws(observed: Observed, events: list[Event], rest: bytes) -> Iterable[str]:
    if observed.status != 200:
        body = b"".join(piece for _, piece in observed.pieces)
        yield f"status {observed.status} {observed.broken} {body[:200]!r}".replace("  ", " ")
        return
    if not observed.complete:
        yield f"cut off: {observed.broken}"
    if rest:
        yield f"ends in the middle of an event: {rest[:80]!r}"
    done = sum(event.data == _DONE for event in events)
    if done != 1 or events[-1].data != _DONE:
        last = events[-1].data[:80] if events else b""
        yield f"[DONE] came {done} times, and the last event is {last!r}"


def _chunk_flaws(chunks: list[Mapping[str, object]], expected: Expected) -> Iterable[str]:
    for name in ("id", "model", "created"):
        values = {json.dumps(chunk.get(name)) for chunk in chunks}
        if len(values) != 1:
            yield f"{len(values)} values of {name}: {', '.join(sorted(values)[:3])}"
    choices = [choice for chunk in chunks for choice in _choices(chunk)]
    roles = [delta["role"] for delta in map(_delta, choices) if delta.get("role")]
    if roles != ["assistant"]:
        yield f"the role came {len(roles)} times"
    yield from _text_flaws("".join(map(_text_of, chunks)), expected.text)
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    if reasons != [expected.finish_reason]:
        yield f"finish_reason is {reasons}, expected once {expected.finish_reason!r}"
    if any(choice.get("token_ids") for choice in choices):
        yield "token ids are shown, and nobody asked for them"
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    counts = [
        (usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("total_tokens"))
        for usage in usages
        if isinstance(usage, Mapping)
    ]
    prompt, completion = expected.prompt_tokens, expected.completion_tokens
    if counts != [(prompt, completion, prompt + completion)]:
        yield f"usage (prompt, completion, total) is {counts}, expected once {prompt}, {completion}"


def _text_flaws(text: str, expected: str) -> Iterable[str]:
    if text == expected:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b),
        min(len(text), len(expected)),
    )
    yield (
        f"the text differs at character {at} of {len(expected)} (it has {len(text)}): "
        f"{text[max(0, at - 20) : at + 20]!r}, expected {expected[max(0, at - 20) : at + 20]!r}"
    )


def _choices(chunk: Mapping[str, object]) -> list[Mapping[str, object]]:
    choices = chunk.get("choices")
    return [each for each in choices if isinstance(each, Mapping)] if choices else []  # type: ignore[attr-defined]


def _delta(choice: Mapping[str, object]) -> Mapping[str, object]:
    delta = choice.get("delta")
    return delta if isinstance(delta, Mapping) else {}


def _text_of(chunk: Mapping[str, object]) -> str:
    return "".join(str(_delta(choice).get("content") or "") for choice in _choices(chunk))
