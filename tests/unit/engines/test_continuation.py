"""Which answers can be continued from their tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.engines.continuation import (
    OBSTACLES,
    checked_tokens,
    refusal,
    tokens_to_continue,
)

PLAIN: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"stream": True, "max_tokens": 5, "min_tokens": 2, "stop": ["a"], "stop_token_ids": [1]},
        {"temperature": 0.7, "seed": 3, "top_p": 0.9, "top_k": 4, "min_p": 0.1},
        {"repetition_penalty": 1.2, "logit_bias": {"5": 1}, "allowed_token_ids": [1, 2]},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"},
        {"prompt": "text"},
        {"prompt": ["one text"]},
        {"prompt": [1, 2, 3]},
        {"prompt": [[1, 2, 3]]},
        {"vllm_xargs": {"pointsman_continue": [1]}},
        {"vllm_xargs": None, "tools": None, "prompt": None},
        {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
        {"cache_salt": "a", "priority": 1, "user": "u", "ignore_eos": True},
    ],
)
def test_body_can_be_continued_when_nothing_looks_at_the_answer(change: dict[str, Any]) -> None:
    assert refusal(PLAIN | change) is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"n": 2}, "n=2"),
        ({"n": True}, "n=True"),
        ({"best_of": 2}, "best_of=2"),
        ({"use_beam_search": True}, "use_beam_search=True"),
        ({"echo": True}, "echo=True"),
        ({"logprobs": True}, "logprobs=True"),
        ({"logprobs": 0}, "logprobs=0"),
        ({"top_logprobs": 3}, "top_logprobs=3"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"prompt_logprobs": 0}, "prompt_logprobs=0"),
        ({"prompt_embeds": "abc"}, "prompt_embeds"),
        ({"presence_penalty": 0.5}, "presence_penalty=0.5"),
        ({"frequency_penalty": -1}, "frequency_penalty=-1"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"repetition_detection": {"max_pattern_size": 3}}, "repetition_detection"),
        ({"thinking_token_budget": 100}, "thinking_token_budget=100"),
        ({"watermarking": True}, "watermarking=True"),
        ({"include_reasoning": False}, "include_reasoning=False"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"guided_json": {}}, "guided_json"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice='required'"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "strict"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
        ({"prompt": ["a", "b"]}, "a list of prompts"),
        ({"prompt": [[1], [2]]}, "a list of prompts"),
        ({"vllm_xargs": {"pointsman_continue": [1], "other": 1}}, "vllm_xargs.other"),
    ],
)
def test_body_cannot_be_continued_when_something_looks_at_the_answer(
    change: dict[str, Any], what: str
) -> None:
    reason = refusal(PLAIN | change)
    assert reason is not None
    assert what in reason
    assert "cannot be continued: " in reason


@pytest.mark.parametrize("name", sorted(OBSTACLES))
def test_each_obstacle_is_none_when_its_value_is_harmless(name: str) -> None:
    assert [None] * len(OBSTACLES[name].harmless) == [
        refusal(PLAIN | {name: value}) for value in OBSTACLES[name].harmless
    ]
    assert refusal(PLAIN | {name: {"unheard": "of"}}) is not None


def test_tokens_are_none_when_a_new_answer_is_asked_for() -> None:
    assert tokens_to_continue(PLAIN) is None
    assert tokens_to_continue(PLAIN | {"vllm_xargs": {}}) is None
    assert () == tokens_to_continue(PLAIN | {"vllm_xargs": {"pointsman_continue": []}})
    assert (3, 4) == tokens_to_continue(PLAIN | {"vllm_xargs": {"pointsman_continue": [3, 4]}})


@given(
    st.one_of(st.text(), st.integers(), st.lists(st.one_of(st.text(), st.booleans()), min_size=1)),
)
def test_tokens_are_refused_when_they_are_no_ids(given_value: object) -> None:
    with pytest.raises(ValueError, match=r"vllm_xargs\.pointsman_continue"):
        checked_tokens(given_value)


def test_tokens_are_refused_when_they_are_beyond_the_vocabulary() -> None:
    assert (0, 9) == checked_tokens([0, 9], vocabulary=10)
    with pytest.raises(ValueError, match=r"has 10: give the ids .*, 0 to 9"):
        checked_tokens([10], vocabulary=10)
