from __future__ import annotations

from array import array

import pytest

from pointsman_serving.gateway.kv.lessons import is_text_alone
from pointsman_serving.gateway.said import Said

TEXT = {"role": "user", "content": "hello"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [TEXT, PARTS, {"role": "assistant", "content": None}]},
        {"prompt": "hello"},
        {"messages": [TEXT], "truncate_prompt_tokens": None},
    ],
)
def test_prompt_teaches_when_it_is_text_alone(fields: dict[str, object]) -> None:
    assert is_text_alone(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [TEXT, PICTURE]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": ["hello"]},
        {"messages": [TEXT], "truncate_prompt_tokens": 100},
        {"messages": [TEXT], "continue_final_message": True},
        {"prompt": [1, 2, 3]},
        {},
    ],
)
def test_prompt_does_not_teach_when_its_blocks_hang_on_more(fields: dict[str, object]) -> None:
    assert not is_text_alone(fields)


FIRST = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}],"prompt_token_ids":[7,8]}\n\n'


@pytest.mark.parametrize(("keep", "kept"), [(True, [7, 8]), (False, [])])
def test_prompt_ids_are_kept_when_asked_for(keep: bool, kept: list[int]) -> None:
    said = Said(hide_tokens=True, keep_prompt=keep)
    assert b"prompt_token_ids" not in said.take(FIRST)
    assert (array("I", kept), 2) == (said.prompt_ids, said.prompt_tokens)


def delta(member: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{%b},"token_ids":[1]}]}\n\n' % member.encode()


def test_text_is_not_the_sole_one_when_something_else_was_said() -> None:
    said = Said(hide_tokens=True)
    assert said.sole_text("content") is None
    said.take(delta('"content":"a"'))
    said.take(delta('"content":"b"'))
    assert "ab" == said.sole_text("content")
    assert said.sole_text("text") is None
    said.take(delta('"reasoning":"hm"'))
    assert said.sole_text("content") is None
