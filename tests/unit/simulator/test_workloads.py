from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.simulator.ideal import ideal_cached_tokens
from pointsman_serving.simulator.request import BLOCK_TOKENS, SimRequest
from pointsman_serving.simulator.workload import Part, Workload, WorkloadKind
from pointsman_serving.simulator.workloads.arrivals import (
    arriving,
    at_rate,
    gamma,
    mean_rate,
    poisson,
    square_wave,
)
from pointsman_serving.simulator.workloads.azure import load_azure
from pointsman_serving.simulator.workloads.enlarge import enlarge, halves
from pointsman_serving.simulator.workloads.labels import labelled
from pointsman_serving.simulator.workloads.mooncake import load_mooncake
from pointsman_serving.simulator.workloads.reading import TraceError
from pointsman_serving.simulator.workloads.sessions import (
    MULTI_TURN,
    TOOL_AGENT,
    PrefixFamily,
    SessionMix,
    generate_sessions,
)

LINE = {"timestamp": 1000, "input_length": 1030, "output_length": 7, "hash_ids": [3, 4, 9]}
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def mooncake_file(folder: Path, *lines: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def azure_file(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


# Mooncake.


def test_mooncake_lines_are_requests(tmp_path: Path) -> None:
    path = mooncake_file(tmp_path, LINE, {**LINE, "timestamp": 4000, "output_length": 0})

    first, second = load_mooncake(path, spread_seed=None)

    assert (0.0, 1030, 7, (3, 4, 9)) == (
        first.arrival_seconds,
        first.prompt_tokens,
        first.output_tokens,
        first.blocks,
    )
    assert (3.0, 1) == (second.arrival_seconds, second.output_tokens)


def test_mooncake_requests_are_spread_over_their_tick_in_order(tmp_path: Path) -> None:
    path = mooncake_file(
        tmp_path, *[LINE] * 40, *[{**LINE, "timestamp": 4000}] * 3, {**LINE, "timestamp": 7000}
    )

    requests = load_mooncake(path, spread_seed=1)

    times = [each.arrival_seconds for each in requests]
    assert times == sorted(times)
    assert all(0.0 <= at < 3.0 for at in times[:40])
    assert all(3.0 <= at < 6.0 for at in times[40:43])
    assert 40 == len(set(times[:40]))
    assert [f"m{n}" for n in range(1, 45)] == [each.request_id for each in requests]


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        ("{", "", "is not JSON"),
        ("[1]", "", "is a list; give one object a line"),
        ({"timestamp": 2000}, "input_length", "is missing; the line has"),
        ({**LINE, "input_length": -1}, "input_length", "is -1; give 0 tokens or more"),
        ({**LINE, "input_length": 1.5}, "input_length", "is 1.5; give a whole number"),
        ({**LINE, "output_length": "9"}, "output_length", "is '9'; give a whole number"),
        ({**LINE, "output_length": True}, "output_length", "is True; give a whole number"),
        ({**LINE, "timestamp": None}, "timestamp", "is None; give a number"),
        ({**LINE, "timestamp": 999}, "timestamp", "is 999, and 1000 on the line before"),
        ({**LINE, "hash_ids": 3}, "hash_ids", "is 3; give a list"),
        ({**LINE, "hash_ids": [1, -2]}, "hash_ids[1]", "is -2; give a whole number from 0"),
        ({**LINE, "hash_ids": [1, 2, 3, 4]}, "hash_ids", "has 4 ids and input_length 1030 fills 3"),
        ('{"timestamp": NaN, "input_length": 1}', "timestamp", "is nan; give a number"),
    ],
)
def test_mooncake_line_is_named_when_it_is_wrong(
    tmp_path: Path, line: object, field: str, message: str
) -> None:
    path = mooncake_file(tmp_path, LINE, line)

    with pytest.raises(TraceError) as caught:
        load_mooncake(path)

    assert (2, field) == (caught.value.line, caught.value.field)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}, line 2")


@pytest.mark.parametrize("load", [load_mooncake, load_azure])
def test_trace_is_named_when_it_cannot_be_read(tmp_path: Path, load: object) -> None:
    for path, message in ((tmp_path / "none", "cannot be read"), (tmp_path / "empty", "is empty")):
        (tmp_path / "empty").write_text("")
        with pytest.raises(TraceError, match=message):
            load(path)  # type: ignore[operator]


# Azure.


def test_azure_rows_are_requests_when_the_last_has_no_end(tmp_path: Path) -> None:
    path = azure_file(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.6805900,396,0",
    )

    first, second = load_azure(path)

    assert (0.0, 374, 44) == (first.arrival_seconds, first.prompt_tokens, first.output_tokens)
    assert (4.0, 396, 1) == (second.arrival_seconds, second.prompt_tokens, second.output_tokens)


@pytest.mark.parametrize(
    ("rows", "line", "field", "message"),
    [
        ("A,B\n1,2", 1, "TIMESTAMP", "is no column; the columns are ['A', 'B']"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,1", 2, "TIMESTAMP", "is 'x'; give a date"),
        (
            f"{HEADER}2023-11-16 18:00:00,1,1\n2023-11-16 18:00:01,-5,1",
            3,
            "ContextTokens",
            "is -5; give 0 tokens or more",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,1,",
            2,
            "GeneratedTokens",
            "is ''; give a whole number",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,1",
            2,
            "",
            "has 2 fields; the header has 3 columns",
        ),
        (
            f"{HEADER}2023-11-16 18:00:00,1,1\n2023-11-16 17:00:00,1,1",
            3,
            "TIMESTAMP",
            "before the first row's; sort the rows",
        ),
    ],
)
def test_azure_row_is_named_when_it_is_wrong(
    tmp_path: Path, rows: str, line: int, field: str, message: str
) -> None:
    with pytest.raises(TraceError) as caught:
        load_azure(azure_file(tmp_path, rows))

    assert (line, field) == (caught.value.line, caught.value.field)
    assert message in str(caught.value)


# Arrivals.


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise([0.0, *times])]


def test_poisson_has_its_rate() -> None:
    times = list(itertools.islice(poisson(5.0, random.Random(1)), 5000))

    assert 5000 / times[-1] == pytest.approx(5.0, rel=0.05)


def test_gamma_comes_in_bursts_when_its_shape_is_small() -> None:
    times = list(itertools.islice(gamma(5.0, 0.3, random.Random(1)), 20_000))

    mean = times[-1] / len(times)
    variance = sum((gap - mean) ** 2 for gap in gaps(times)) / len(times)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert variance / mean**2 == pytest.approx(1 / 0.3, rel=0.1)


def test_square_wave_changes_its_rate_each_half_period() -> None:
    times = itertools.takewhile(
        lambda at: at < 4000, square_wave(30.0, 6.0, 100.0, random.Random(2))
    )

    high = Counter(int(at / 50) % 2 for at in times)
    assert high[0] / 2000 == pytest.approx(30.0, rel=0.05)
    assert high[1] / 2000 == pytest.approx(6.0, rel=0.05)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rate_is_refused_when_it_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="give a number above 0"):
        next(poisson(rate, random.Random(1)))


def test_requests_get_the_times_in_order() -> None:
    requests = generate_sessions(TOOL_AGENT, count=3, seed=1)

    assert [1.0, 2.0, 5.0] == [
        each.arrival_seconds for each in arriving(requests, [1.0, 2.0, 5.0, 9.0])
    ]
    with pytest.raises(ValueError, match="3 requests got 1 arrival times"):
        arriving(requests, [1.0])


@given(rate=st.floats(0.01, 1000))
def test_gaps_keep_their_proportions_when_the_rate_changes(rate: float) -> None:
    requests = generate_sessions(TOOL_AGENT, count=20, seed=1)

    moved = at_rate(requests, rate)

    assert mean_rate(moved) == pytest.approx(rate)
    before = gaps([each.arrival_seconds for each in requests])[1:]
    after = gaps([each.arrival_seconds for each in moved])[1:]
    assert [gap / sum(after) for gap in after] == pytest.approx([g / sum(before) for g in before])


# Enlarging.


def simple(number: int, at: float, blocks: tuple[int, ...]) -> SimRequest:
    return SimRequest(
        request_id=f"r{number}",
        arrival_seconds=at,
        prompt_tokens=len(blocks) * BLOCK_TOKENS + 1,
        output_tokens=5,
        blocks=blocks,
    )


def test_copies_share_only_the_common_first_block() -> None:
    requests = [simple(0, 0.0, (0, 1, 2)), simple(1, 1.0, (0, 1, 2, 3)), simple(2, 2.0, (0, 9))]

    enlarged = enlarge(requests, 3, seed=1)

    assert 9 == len(enlarged)
    assert 9 == len({each.request_id for each in enlarged})
    copies = [
        {block for each in enlarged if each.request_id.endswith(end) for block in each.blocks}
        for end in ("/1", "/2")
    ]
    original = {block for each in requests for block in each.blocks}
    assert {0} == original & copies[0] == original & copies[1] == copies[0] & copies[1]
    assert ideal_tokens(enlarged) == 3 * ideal_tokens(requests) + 2 * BLOCK_TOKENS


def ideal_tokens(requests: list[SimRequest]) -> int:
    return sum(ideal_cached_tokens(requests).values())


def test_turns_of_a_copied_session_keep_their_distance() -> None:
    requests = [simple(0, 0.0, (0, 1)), simple(1, 7.0, (0, 1, 2)), simple(2, 0.0, (0, 5))]

    enlarged = {each.request_id: each.arrival_seconds for each in enlarge(requests, 2, seed=3)}

    assert enlarged["r1/1"] - enlarged["r0/1"] == pytest.approx(7.0)
    assert enlarged["r0/1"] != enlarged["r2/1"]


def test_halves_are_by_arrival_and_begin_at_zero() -> None:
    requests = [simple(number, float(number), (number,)) for number in (3, 1, 2, 0)]

    first, second = halves(requests)

    assert [("r0", 0.0), ("r1", 1.0)] == [(e.request_id, e.arrival_seconds) for e in first]
    assert [("r2", 0.0), ("r3", 1.0)] == [(e.request_id, e.arrival_seconds) for e in second]


# Generators.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tool_agent_traffic_is_like_the_trace(seed: int) -> None:
    requests = generate_sessions(TOOL_AGENT, count=8000, seed=seed)

    prompt_tokens = sum(each.prompt_tokens for each in requests)
    assert prompt_tokens / 8000 == pytest.approx(8596, rel=0.05)
    assert sum(each.output_tokens for each in requests) / 8000 == pytest.approx(182, rel=0.03)
    shared = ideal_tokens(requests) / BLOCK_TOKENS / sum(len(each.blocks) for each in requests)
    assert shared == pytest.approx(0.59, abs=0.02)
    by_first_block = Counter(each.blocks[0] for each in requests)
    (_, most), (_, second) = by_first_block.most_common(2)
    assert (most / 8000, second / 8000) == pytest.approx((0.378, 0.149), abs=0.02)
    assert mean_rate(requests) == pytest.approx(1.0, rel=0.1)


def test_multi_turn_prompts_grow_and_share_what_was_before() -> None:
    requests = generate_sessions(MULTI_TURN, count=2000, seed=1)

    sessions: dict[str, list[SimRequest]] = {}
    for each in requests:
        sessions.setdefault(each.conversation, []).append(each)
    grown = [turns for turns in sessions.values() if len(turns) > 1]
    assert len(grown) > 200
    for turns in grown:
        for before, after in itertools.pairwise(turns):
            assert before.prompt_tokens + before.output_tokens < after.prompt_tokens
            assert before.blocks == after.blocks[: len(before.blocks)]
    assert {"chat"} == {each.labels["interaction"] for each in requests}


def test_sessions_are_refused_when_they_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"turns is 0\.5: a session has 1 turn at least"):
        SessionMix(
            families=(PrefixFamily(share=1, blocks=1),),
            first_tokens=1,
            added_tokens=1,
            output_tokens=1,
            turns=0.5,
        )
    with pytest.raises(ValueError, match="count is 0"):
        generate_sessions(TOOL_AGENT, count=0)


# By description.


def test_workload_is_the_same_when_its_description_and_seed_are() -> None:
    workload = Workload(kind=WorkloadKind.TOOL_AGENT, requests=50, copies=2)

    def facts(seed: int) -> list[tuple[str, float, int]]:
        made = workload.make(seed)
        return [(each.request_id, each.arrival_seconds, each.prompt_tokens) for each in made]

    assert 100 == len(facts(1))
    assert facts(1) == facts(1)
    assert facts(1) != facts(2)


def test_workload_is_the_asked_half() -> None:
    first, second = (
        Workload(kind=WorkloadKind.MULTI_TURN, requests=40, part=part).make()
        for part in (Part.FIRST_HALF, Part.SECOND_HALF)
    )

    assert (20, 20) == (len(first), len(second))
    assert {each.request_id for each in first}.isdisjoint(each.request_id for each in second)


def test_workload_is_refused_when_a_trace_has_no_path() -> None:
    with pytest.raises(ValueError, match="a mooncake workload is read from a trace"):
        Workload(kind=WorkloadKind.MOONCAKE)


# Requests.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_seconds": float("nan")}, "arrival_seconds of 'r' is nan"),
        ({"arrival_seconds": -1.0}, "arrival_seconds of 'r' is -1"),
        ({"prompt_tokens": 0}, "prompt_tokens of 'r' is 0"),
        ({"output_tokens": 0}, "output_tokens of 'r' is 0"),
        ({"output_tokens_by_pool": {"a": 0}}, r"output_tokens_by_pool\[a\] of 'r' is 0"),
        ({"blocks": (1, 2, 3)}, "has 3 blocks and its prompt of 600 tokens fills 2"),
        ({"quality_by_pool": {"a": float("nan")}}, r"quality_by_pool\[a\] of 'r' is nan"),
    ],
)
def test_request_is_refused_when_no_client_sends_it(
    changes: dict[str, object], message: str
) -> None:
    fields: dict[str, object] = {
        "request_id": "r",
        "arrival_seconds": 0.0,
        "prompt_tokens": 600,
        "output_tokens": 5,
    }

    with pytest.raises(ValueError, match=message):
        SimRequest(**(fields | changes))  # type: ignore[arg-type]


def test_last_block_is_not_shareable_when_the_prompt_ends_with_it() -> None:
    blocks = (1, 2)

    assert (1,) == simple_of(2 * BLOCK_TOKENS, blocks).shareable_blocks
    assert (1, 2) == simple_of(2 * BLOCK_TOKENS + 1, blocks).shareable_blocks


def simple_of(prompt_tokens: int, blocks: tuple[int, ...]) -> SimRequest:
    return SimRequest(
        request_id="r",
        arrival_seconds=0.0,
        prompt_tokens=prompt_tokens,
        output_tokens=1,
        blocks=blocks,
    )


# Labels.


def test_requests_are_labelled_by_what_they_are() -> None:
    cold = simple(0, 0.0, (0, 1, 2))
    again = simple(1, 1.0, (0, 1, 2, 3))
    alone = simple(2, 2.0, (9,))

    labels = [dict(each.labels) for each in labelled([cold, again, alone])]

    common = {"interaction": "chat"}
    assert [
        {**common, "turns": "multi-turn", "prefix": "cold", "weight": "prefill-heavy"},
        {**common, "turns": "multi-turn", "prefix": "warm", "weight": "prefill-heavy"},
        {**common, "turns": "single-turn", "prefix": "cold", "weight": "prefill-heavy"},
    ] == labels


def test_request_is_decode_heavy_when_its_prompt_is_cached() -> None:
    first, second = labelled([simple(0, 0.0, (1, 2, 3)), simple(1, 1.0, (1, 2, 3))])

    assert ("prefill-heavy", "decode-heavy") == (first.labels["weight"], second.labels["weight"])


def test_generated_agents_keep_their_label() -> None:
    requests = Workload(kind=WorkloadKind.TOOL_AGENT, requests=20).make()

    assert {"agent"} == {each.labels["interaction"] for each in requests}
