"""Bodies and flags of the Transformers engine, and text cut at stop strings. No model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.engines.openai_errors import ApiError
from pointsman_serving.engines.openai_reply import Endpoint
from pointsman_serving.engines.transformers.options import (
    TransformersOptions,
    parse_transformers_args,
)
from pointsman_serving.engines.transformers.requests import (
    Sampling,
    read_request,
    room_for_answer,
)
from pointsman_serving.engines.transformers.text import StopFilter

USER = [{"role": "user", "content": "hi"}]


def read(endpoint: Endpoint = Endpoint.CHAT, **body: Any) -> Any:
    if endpoint is Endpoint.CHAT:
        body.setdefault("messages", USER)
    return read_request(body, endpoint, model_name="m")


def test_args_are_read_in_both_spellings() -> None:
    expected = TransformersOptions(
        dtype="float16", num_blocks=256, max_num_seqs=8, prefix_caching=False, seed=0
    )

    found = parse_transformers_args(
        [
            "--dtype=float16",
            "--num-blocks",
            "256",
            "--max-num-seqs=8",
            "--seed=0",
            "--no-enable-prefix-caching",
        ]
    )

    assert expected == found
    assert TransformersOptions() == parse_transformers_args([])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--gpu"], "unrecognized arguments: --gpu; known flags: --attention"),
        (["--num-blocks=0"], "'0' is not allowed, a whole number of at least 1 is"),
        (["--num-blocks=x"], "'x' is not allowed"),
        (["--num-blocks"], "expected one argument"),
        (["--dtype=int8"], "invalid choice: 'int8'"),
        (["--max-num"], "unrecognized arguments: --max-num"),
        (["--seed=-1"], "at least 0"),
    ],
)
def test_args_name_what_is_allowed_when_one_is_wrong(args: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_transformers_args(args)


def test_request_reads_what_it_honours() -> None:
    found = read(
        temperature=0,
        top_p=0.5,
        top_k=3,
        max_completion_tokens=7,
        max_tokens=9,
        stop="x",
        stream=True,
        stream_options={"include_usage": True},
        ignore_eos=True,
        seed=4,
        user="somebody",
        unknown="ignored",
        cache_salt="tenant",
    )

    assert Sampling(temperature=0.0, top_p=0.5, top_k=3) == found.sampling
    assert (7, ("x",), True, True, True, "tenant") == (
        found.max_tokens,
        found.stop,
        found.stream,
        found.include_usage,
        found.ignore_eos,
        found.cache_salt,
    )


def test_request_joins_parts_of_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    found = read(messages=[{"role": "user", "content": parts}])

    assert ({"role": "user", "content": "ab"},) == found.messages


@pytest.mark.parametrize(
    ("prompt", "text", "ids"),
    [("a", "a", None), (["a"], "a", None), ([1, 2], None, (1, 2)), ([[1, 2]], None, (1, 2))],
)
def test_completion_takes_one_prompt(prompt: Any, text: str | None, ids: Any) -> None:
    found = read(Endpoint.COMPLETION, prompt=prompt)

    assert (text, ids, 16) == (found.text, found.token_ids, found.max_tokens)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [*USER, {"role": "user", "content": 3}]}, "messages[1].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 3}, "stream_options"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": 3}, "cache_salt"),
    ],
)
def test_request_names_the_field_when_it_cannot_be_served(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(**body)

    assert caught.value.status == 400
    error: Any = caught.value.body["error"]
    assert (param, 400, "BadRequestError") == (error["param"], error["code"], error["type"])
    assert "allowed" in error["message"] or "does not support" in error["message"]


@pytest.mark.parametrize("prompt", [None, 3, ["a", "b"], [[1], [2]], [1, "a"], [-1], [True]])
def test_completion_refuses_when_the_prompt_is_not_one(prompt: Any) -> None:
    with pytest.raises(ApiError, match="prompt is"):
        read(Endpoint.COMPLETION, prompt=prompt)


def test_request_names_the_model_that_is_served_when_another_is_asked_for() -> None:
    with pytest.raises(ApiError, match="`x` does not exist; this replica serves `m`") as caught:
        read(model="x")
    assert caught.value.status == 404


@given(st.integers(1, 50), st.integers(1, 50), st.integers(2, 60))
def test_room_keeps_prompt_and_answer_within_the_context(
    prompt: int, wanted: int, context: int
) -> None:
    if prompt + wanted <= context:
        assert wanted == room_for_answer(prompt, wanted, max_model_len=context)
    else:
        with pytest.raises(ApiError, match=f"maximum context length is {context} tokens"):
            room_for_answer(prompt, wanted, max_model_len=context)
    if prompt < context:
        assert context - prompt == room_for_answer(prompt, None, max_model_len=context)


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
)
def test_stop_filter_shows_the_text_up_to_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    text, end = "", None
    # Character by character: the first stop string to be complete ends the text.
    for position in range(len("".join(pieces)) + 1):
        text = "".join(pieces)[:position]
        starts = [text.find(stop) for stop in stops if stop in text]
        if starts:
            end = min(starts)
            break
    expected = text if end is None else text[:end]
    cut = StopFilter(stops)

    shown = "".join(cut.feed(letter) for piece in pieces for letter in piece)
    if not cut.stopped:
        shown += cut.flush()

    assert expected == shown
    assert (end is not None) == cut.stopped


def test_stop_filter_holds_back_only_what_may_become_a_stop() -> None:
    cut = StopFilter(["END"])

    assert ["a", "", "ENx", "", ""] == [cut.feed(t) for t in ("aE", "N", "x", "EN", "D")]
    assert cut.stopped
