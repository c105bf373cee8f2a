from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.quality.scores import MOST_ERRORS, ScoreFileError, read_scores

GOOD = b'{"task": "t", "prompt": "p", "scores": {"a": 1}}'


def test_scores_are_read_when_lines_leave_models_out() -> None:
    lines = [
        b'{"task": "t", "prompt": "one", "scores": {"b": 1, "a": 0.25}, "more": null}\n',
        b"\n",
        b'{"task": "s", "prompt": "two", "scores": {"c": 0}}',
    ]
    table = read_scores(lines, "f")
    assert (("a", "b", "c"), ("s", "t"), ("one", "two")) == (
        table.models,
        table.tasks,
        table.prompts,
    )
    assert [1, 0] == table.task_of.tolist()
    nan = math.nan
    assert np.array_equal([[0.25, 1, nan], [nan, nan, 0]], table.scores, equal_nan=True)


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (b'{"task": "t", "prompt": "q", "scores": {"a": NaN}}', "scores.a", "not scored"),
        (b'{"task": "t", "prompt": "q", "scores": {"a": Infinity}}', "scores.a", "is Infinity"),
        (b'{"task": "t", "prompt": "q", "scores": {"a": -0.1}}', "scores.a", "is -0.1"),
        (b'{"task": "t", "prompt": "q", "scores": {"a": 1.5}}', "scores.a", "from 0 (wrong)"),
        (b'{"task": "t", "prompt": "q", "scores": {"a": 1' + b"0" * 400 + b"}}", "scores.a", "is"),
        (b'{"task": "t", "prompt": "q", "scores": {"a": true}}', "scores.a", "is true"),
        (b'{"task": "t", "prompt": "q", "scores": {"a": "1"}}', "scores.a", 'is "1"'),
        (b'{"task": "t", "prompt": "q", "scores": {"a": null}}', "scores.a", "is null"),
        (b'{"task": "t", "prompt": "q", "scores": {"a": 1, "a": 0}}', "a", "stated twice"),
        (b'{"task": "t", "prompt": "q", "scores": {" ": 1}}', "scores", "without a name"),
        (b'{"task": "t", "prompt": "q", "scores": {}}', "scores", "is empty"),
        (b'{"task": "t", "prompt": "q", "scores": [1]}', "scores", "not an object"),
        (b'{"task": "t", "prompt": "q"}', "scores", "is missing"),
        (b'{"prompt": "q", "scores": {"a": 1}}', "task", "is missing"),
        (b'{"task": "", "prompt": "q", "scores": {"a": 1}}', "task", "is empty"),
        (b'{"task": 3, "prompt": "q", "scores": {"a": 1}}', "task", "is 3, not a string"),
        (b'{"task": "t", "scores": {"a": 1}}', "prompt", "is missing"),
        (b'{"task": "t", "prompt": " \\n", "scores": {"a": 1}}', "prompt", "is empty"),
        (b'{"task": "u", "prompt": "p", "scores": {"a": 1}}', "prompt", "that of line 1 again"),
        (b'["t", "p", 1]', "", "not an object"),
        (b'{"task": "t"', "", "is not JSON"),
        (b"[" * 100_000, "", "is not JSON"),
        (b'{"task": "\xff"}', "", "is not UTF-8"),
    ],
)
def test_the_line_and_field_are_named_when_a_score_is_wrong(
    line: bytes, field: str, words: str
) -> None:
    with pytest.raises(ScoreFileError) as caught:
        read_scores([GOOD, line], "scores.jsonl")
    (error,) = caught.value.errors
    assert ("scores.jsonl", 2, field) == (error.path, error.line, error.field)
    assert words in error.message
    assert len(str(error)) < 400


def test_every_error_is_told_when_there_are_several() -> None:
    with pytest.raises(ScoreFileError) as caught:
        read_scores([b'{"scores": {"a": -1}}', b"x"], "f")
    assert [(1, "task"), (1, "prompt"), (1, "scores.a"), (2, "")] == [
        (error.line, error.field) for error in caught.value.errors
    ]


def test_reading_stops_when_every_line_is_wrong() -> None:
    read = []

    def lines() -> object:
        for number in range(1_000):
            read.append(number)
            yield b"x"

    with pytest.raises(ScoreFileError) as caught:
        read_scores(lines(), "f")  # type: ignore[arg-type]
    assert MOST_ERRORS == len(caught.value.errors) == len(read)


@pytest.mark.parametrize("lines", [[], [b"\n", b"  "]])
def test_an_example_is_given_when_the_file_is_empty(lines: list[bytes]) -> None:
    with pytest.raises(ScoreFileError, match=r'holds no scores.*"prompt"'):
        read_scores(lines, "f")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["task", "prompt", "scores", "a"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_nothing_but_a_score_file_error_comes_when_lines_are_any_json(value: object) -> None:
    try:
        table = read_scores([json.dumps(value).encode()], "f")
    except ScoreFileError:
        return
    assert ((table.scores >= 0) & (table.scores <= 1)).all()
