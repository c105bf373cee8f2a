"""Bodies in, whole answers out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_serving.engines.openai_errors import ApiError
from pointsman_serving.engines.openai_reply import Endpoint
from pointsman_serving.engines.simulated.protocol import ModelText, plan_generation
from pointsman_serving.engines.simulated.reply import Generation
from pointsman_serving.engines.simulated.text import LengthModel

TEXT = ModelText(
    model_name="m", seed=0, max_model_len=200, block_tokens=4, lengths=LengthModel(mean_tokens=20)
)


def plan(body: dict[str, object], endpoint: Endpoint = Endpoint.COMPLETION) -> Generation:
    return plan_generation(body, endpoint, TEXT, base_id="id", engine_id="0", created=1, sample=0)


SCALARS = st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELD_LIST = (
    "model messages prompt max_tokens max_completion_tokens min_tokens stop stream stream_options "
    "temperature seed tools tool_choice n logprobs ignore_eos cache_salt continue_final_message "
    "add_generation_prompt return_token_ids include_stop_str_in_output response_format"
)
FIELDS = FIELD_LIST.split()
GOOD: dict[str, object] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hi"}],
    "prompt": "Hi",
}


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), st.sampled_from(Endpoint))
def test_plan_answers_or_says_why_not_when_any_json_comes(
    changes: dict[str, object], endpoint: Endpoint
) -> None:
    body = json.loads(json.dumps(GOOD | changes))
    refusal = None
    try:
        generation = plan(body, endpoint)
    except ApiError as failure:
        refusal = failure
    if refusal is not None:
        assert 400 <= refusal.status < 500
        json.dumps(refusal.body)
        return
    assert len(generation.output) == len(generation.pieces) == generation.work.output_tokens >= 1
    assert len(generation.prompt) + len(generation.output) <= 200
    json.loads(generation.reply(0))
    for position in range(len(generation.output)):
        json.loads(generation.chunk(position).removeprefix(b"data: "))


def test_plan_writes_what_max_tokens_says_when_the_end_is_ignored() -> None:
    generation = plan({"prompt": "Hi", "max_tokens": 33, "ignore_eos": True})
    assert (33, "length") == (len(generation.output), generation.finish_reason)


def test_plan_fills_the_context_when_no_limit_is_given() -> None:
    body = {"messages": GOOD["messages"], "ignore_eos": True}
    generation = plan(body, Endpoint.CHAT)
    assert 200 == len(generation.prompt) + len(generation.output)


def test_plan_writes_sixteen_tokens_when_a_completion_states_no_limit() -> None:
    assert 16 == len(plan({"prompt": "Hi", "ignore_eos": True}).output)


def test_plan_writes_at_least_min_tokens_when_the_draw_is_shorter() -> None:
    body = {"prompt": "Hi", "max_tokens": 150, "min_tokens": 140, "temperature": 0}
    generation = plan(body)
    assert (140, "stop", "") == (
        len(generation.output),
        generation.finish_reason,
        generation.pieces[-1],
    )


@pytest.mark.parametrize("keep", [True, False])
def test_plan_keeps_the_stop_text_when_it_is_asked_to(*, keep: bool) -> None:
    body: dict[str, object] = {"prompt": "Hi", "temperature": 0, "ignore_eos": True}
    words = "".join(plan(body).pieces).split()
    cut = plan(body | {"stop": [words[3]], "include_stop_str_in_output": keep})
    assert " " + " ".join(words[: 4 if keep else 3]) == "".join(cut.pieces).rstrip()


def test_plan_ends_once_and_for_all_when_the_answer_was_complete() -> None:
    body: dict[str, object] = {"temperature": 0, "messages": GOOD["messages"]}
    whole = "".join(plan(body, Endpoint.CHAT).pieces)
    done = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": whole}]
    rest = plan(body | {"messages": done, "continue_final_message": True}, Endpoint.CHAT)
    assert ("stop", ("",)) == (rest.finish_reason, rest.pieces)
