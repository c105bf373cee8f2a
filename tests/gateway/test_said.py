"""What a client has got of a stream, and what of its repetition is new."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman_serving.gateway.chunk import payload
from pointsman_serving.gateway.said import Said, SeamError


def event(
    delta: dict[str, Any] | None = None,
    ids: list[int] | None = None,
    finish: str | None = None,
    *,
    name: str = "first",
    **more: object,
) -> bytes:
    choice: dict[str, object] = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    if ids is not None:
        choice["token_ids"] = ids
    chunk = {
        "id": name,
        "object": "chat.completion.chunk",
        "created": len(name),
        "model": "m",
        "choices": [choice],
        **more,
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def deltas(events: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(payload(one))["choices"][0]["delta"] for one in events if one]


def test_said_cuts_token_ids_out_when_the_client_did_not_ask_for_them() -> None:
    said = Said(hide_tokens=True)
    first = event({"role": "assistant", "content": ""}, prompt_token_ids=[1, 2, 3])
    assert event({"role": "assistant", "content": ""}) == said.take(first)
    text = 'a "token_ids":[9] b'
    assert event({"content": text}) == said.take(event({"content": text}, [4, 5]))
    assert ([4, 5], 3) == (said.tokens.tolist(), said.prompt_tokens)


def test_said_leaves_events_as_they_are_when_the_client_asked_for_token_ids() -> None:
    one = event({"content": "x"}, [4])
    assert one == Said(hide_tokens=False).take(one)


@given(
    words=st.lists(st.text(min_size=0, max_size=4), min_size=1, max_size=12),
    cut=st.integers(0, 12),
    groups=st.lists(st.integers(1, 5), min_size=12, max_size=12),
)
def test_text_is_the_unbroken_one_when_the_repetition_is_divided_otherwise(
    words: list[str], cut: int, groups: list[int]
) -> None:
    said = Said(hide_tokens=True)
    got = [said.take(event({"content": word}, [n])) for n, word in enumerate(words[:cut])]
    assert "" == said.flaw
    said.resume()
    at = 0
    for size in groups:
        part = words[at : at + size]
        ids = list(range(at, at + len(part)))
        got.append(said.take(event({"content": "".join(part)}, ids, name="second")))
        at += size
    assert "".join(words) == "".join(delta.get("content") or "" for delta in deltas(got))
    assert list(range(len(words))) == said.tokens.tolist()
    if cut:
        assert {"first"} == {json.loads(payload(one))["id"] for one in got if one}


def call(index: int, **members: object) -> dict[str, object]:
    name, arguments = members.pop("name", None), members.pop("arguments", None)
    function = {"name": name, "arguments": arguments}
    return {
        "index": index,
        **members,
        "function": {key: value for key, value in function.items() if value is not None},
    }


def test_tool_call_keeps_its_id_and_gets_the_rest_of_its_arguments_when_it_goes_on() -> None:
    said = Said(hide_tokens=True)
    opening = call(0, id="call-1", type="function", name="add", arguments="")
    got = [
        said.take(event({"role": "assistant", "content": "Let me "}, [1])),
        said.take(event({"tool_calls": [opening]}, [2])),
        said.take(event({"tool_calls": [call(0, arguments='{"a"')]}, [3])),
    ]
    said.resume()
    again = call(0, id="call-9", type="function", name="add", arguments='{"a": 1}')
    other = call(1, id="call-10", type="function", name="sub", arguments="{}")
    got += [
        said.take(event({"role": "assistant", "content": "Let me "}, [1])),
        said.take(event({"tool_calls": [again]}, [2, 3, 4])),
        said.take(event({"tool_calls": [other]}, [5])),
        said.take(event({}, [6], "tool_calls")),
    ]
    calls = [one for delta in deltas(got) for one in delta.get("tool_calls") or []]
    assert ["call-1", "call-10"] == [one["id"] for one in calls if "id" in one]
    assert ["add", "sub"] == [one["function"]["name"] for one in calls if "name" in one["function"]]
    for index, expected in enumerate(('{"a": 1}', "{}")):
        parts = [one["function"].get("arguments", "") for one in calls if one["index"] == index]
        assert expected == "".join(parts)
    assert said.finished


def test_reasoning_and_content_are_kept_apart_when_the_stream_goes_on() -> None:
    said = Said(hide_tokens=True)
    said.take(event({"reasoning_content": "hm"}, [1]))
    said.resume()
    left = said.take(event({"reasoning_content": "hmm", "content": "yes"}, [1, 2, 3]))
    assert [{"reasoning_content": "m", "content": "yes"}] == deltas([left])


@pytest.mark.parametrize(
    ("repetition", "where"),
    [
        (event({"content": "ab"}, [1, 3]), "other tokens, from token 0"),
        (event({"content": "ax"}, [1, 2]), "another text, from character 0"),
        (event({"content": "a"}, [1], "stop"), "ends before"),
        (b"data: nonsense\n\n", "not understood"),
        (b"data: []\n\n", "no object"),
        (event({"content": "ab", "audio": {}}, [1, 2]), "'audio'"),
    ],
)
def test_repetition_is_refused_when_it_is_not_what_was_said(repetition: bytes, where: str) -> None:
    said = Said(hide_tokens=True)
    said.take(event({"content": "ab"}, [1, 2]))
    said.resume()
    with pytest.raises(SeamError, match=where):
        said.take(repetition)
    assert [1, 2] == said.tokens.tolist()
    # Another replica may still repeat it as it was.
    said.resume()
    assert [{"content": "c"}] == deltas([said.take(event({"content": "abc"}, [1, 2, 3]))])


@pytest.mark.parametrize(
    ("one", "flaw"),
    [
        (event({"content": "x"}), "no token ids"),
        (event({"content": "x", "audio": {"data": ""}}, [1]), "'audio'"),
        (event({"tool_calls": [{"id": "x"}]}, [1]), "without an index"),
        (event({"content": "x"}, [1 << 40]), "out of range"),
        (b"data: {nonsense\n\n", "not understood"),
        (b'data: {"choices":[{"index":0},{"index":1}]}\n\n', "several choices"),
    ],
)
def test_stream_cannot_go_on_when_it_was_not_understood(one: bytes, flaw: str) -> None:
    said = Said(hide_tokens=True)
    said.take(one)
    assert flaw in said.flaw


def test_closing_has_the_usage_when_the_client_asked_for_it() -> None:
    said = Said(hide_tokens=True)
    said.take(event({"content": "a"}, [7], prompt_token_ids=[1, 2, 3]))
    said.take(event({}, [8], "stop"))
    assert said.finished
    assert b"data: [DONE]\n\n" == said.closing(usage=False)
    usage = json.loads(payload(said.closing(usage=True).split(b"\n\n")[0]))["usage"]
    assert {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5} == usage
