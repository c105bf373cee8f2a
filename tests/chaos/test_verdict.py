"""The judge of the chaos runs: an unbroken stream has no flaw, and no flaw goes unseen."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pointsman_serving.engines.openai_reply import Endpoint
from pointsman_serving.engines.simulated.options import parse_simulated_args
from pointsman_serving.engines.simulated.protocol import ModelText, plan_generation
from tests.chaos.stream import Observed
from tests.chaos.verdict import Verdict, expected_of, judge

OPTIONS = parse_simulated_args(["--served-model-name=served", "--seed=11"])
BODY: dict[str, object] = {
    "model": "assistant",
    "messages": [{"role": "user", "content": "tell me of trains"}],
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 12,
    "ignore_eos": True,
}
GAP_SECONDS = 0.1


def unbroken() -> list[bytes]:
    """The events that an engine sends to ``BODY``."""
    text = ModelText(
        model_name=OPTIONS.model_name,
        seed=OPTIONS.seed,
        max_model_len=OPTIONS.max_model_len,
        block_tokens=OPTIONS.profile.block_tokens,
        lengths=OPTIONS.lengths,
    )
    plan = plan_generation(
        {**BODY, "model": "served"},
        Endpoint.CHAT,
        text,
        base_id="1",
        engine_id="1",
        created=1,
        sample=0,
    )
    stream = plan.opening() + b"".join(plan.chunk(n) for n in range(len(plan.output)))
    return [event + b"\n\n" for event in (stream + plan.closing(0)).split(b"\n\n") if event]


def verdict_of(events: list[bytes], *, complete: bool = True, status: int = 200) -> Verdict:
    pieces = [(number * GAP_SECONDS, event) for number, event in enumerate(events)]
    observed = Observed(started_at=0.0, status=status, pieces=pieces, complete=complete)
    observed.ended_at = len(events) * GAP_SECONDS
    return judge(observed, expected_of(BODY, OPTIONS))


def test_stream_has_no_flaw_when_it_is_unbroken() -> None:
    verdict = verdict_of(unbroken())
    assert () == verdict.flaws
    assert GAP_SECONDS == pytest.approx(verdict.longest_gap_seconds)
    assert GAP_SECONDS == pytest.approx(verdict.first_token_seconds)


def test_stream_has_no_flaw_when_its_pieces_are_cut_anywhere() -> None:
    whole = b"".join(unbroken())
    assert () == verdict_of([whole[n : n + 7] for n in range(0, len(whole), 7)]).flaws


def test_gap_is_the_longest_after_the_first_token_when_comments_come_in_it() -> None:
    events = unbroken()
    events[5:5] = [b": still there\n\n"] * 30
    verdict = verdict_of(events)
    assert () == verdict.flaws
    assert 31 * GAP_SECONDS == pytest.approx(verdict.longest_gap_seconds)


def without(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda events: events[:number] + events[number + 1 :]


def twice(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda events: events[: number + 1] + events[number:]


def replaced(number: int, old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    def run(events: list[bytes]) -> list[bytes]:
        changed = events[number].replace(old, new)
        assert changed != events[number]
        return [*events[:number], changed, *events[number:][1:]]

    return run


ERROR = b"data: " + json.dumps({"error": {"message": "it broke"}}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(4), "the text differs at character"),
        (twice(4), "the text differs at character"),
        (without(0), "the role came 0 times"),
        (twice(0), "the role came 2 times"),
        (without(12), "finish_reason is []"),
        (without(-2), "usage (prompt, completion, total) is []"),
        (twice(-2), "usage (prompt, completion, total) is [("),
        (lambda events: events[:-1], "[DONE] came 0 times"),
        (lambda events: [*events, events[-1]], "[DONE] came 2 times"),
        (replaced(6, b'"chatcmpl-1"', b'"chatcmpl-2"'), "2 values of id"),
        (replaced(6, b'"created":1', b'"created":2'), "2 values of created"),
        (replaced(6, b'"token_ids":null', b'"token_ids":[7]'), "token ids are shown"),
        (replaced(-2, b'"completion_tokens":12', b'"completion_tokens":13'), "usage ("),
        (lambda events: [*events[:-1], ERROR, events[-1]], "an error event"),
        (lambda events: [*events[:-2], b"data: {"], "ends in the middle of an event"),
        (lambda events: [*events[:3], b"data: nonsense\n\n", *events[3:]], "no JSON"),
    ],
)
def test_flaw_is_seen_when_a_stream_has_it(
    change: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    events = unbroken()
    # The last two are the usage and [DONE], in one write of the engine.
    flaws = verdict_of(change(events)).flaws
    assert any(said in flaw for flaw in flaws), flaws


def test_flaw_is_seen_when_the_connection_breaks_or_the_status_is_wrong() -> None:
    assert any("cut off" in flaw for flaw in verdict_of(unbroken(), complete=False).flaws)
    flaws = verdict_of([b'{"error":{"message":"full"}}'], status=429).flaws
    assert ["status 429"] == [flaw[:10] for flaw in flaws]
