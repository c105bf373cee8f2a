from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_serving.gateway.body import parse_body
from pointsman_serving.gateway.openai import BadRequestError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_body_is_the_same_bytes_when_nothing_changes() -> None:
    raw = b' {"model" : "m", "messages": [] , "x":1.50 } '
    assert parse_body(raw).rewritten(model="m", add_usage=False, cache_salt="") is raw


def test_body_keeps_the_bytes_of_other_members_when_the_model_changes() -> None:
    raw = b'{ "model": "m", "temperature": 1.50, "messages": [ {"content":"\\u00e9 \xc3\xa9"} ] }'
    out = parse_body(raw).rewritten(model="org/name", add_usage=False, cache_salt="")
    assert out == (
        b'{"model":"org/name","temperature":1.50,"messages":[ {"content":"\\u00e9 \xc3\xa9"} ]}'
    )


def test_body_asks_for_usage_when_the_stream_has_other_options() -> None:
    raw = b'{"model":"m","stream":true,"stream_options":{"continuous_usage_stats":false}}'
    body = parse_body(raw)
    assert body.can_add_usage
    out = json.loads(body.rewritten(model="m", add_usage=True, cache_salt=""))
    assert out["stream_options"] == {"continuous_usage_stats": False, "include_usage": True}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m"}',
        b'{"model":"m","stream":false}',
        b'{"model":"m","stream":"yes"}',
        b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        b'{"model":"m","stream":true,"stream_options":[1]}',
    ],
)
def test_body_adds_no_usage_when_it_is_not_for_the_gateway_to_ask(raw: bytes) -> None:
    assert not parse_body(raw).can_add_usage


def test_body_takes_the_last_when_a_member_comes_twice() -> None:
    raw = b'{"model":"a","model":"b","n":1}'
    body = parse_body(raw)
    assert body.model == "b"
    assert body.rewritten(model="c", add_usage=False, cache_salt="") == b'{"model":"c","n":1}'


@settings(deadline=None)
@given(
    extra=st.dictionaries(st.text(max_size=6), JSON, max_size=5), salt=st.sampled_from(["", "s"])
)
def test_body_decodes_to_the_same_when_rewritten(extra: dict[str, object], salt: str) -> None:
    fields = {**extra, "model": "m", "stream": True, "stream_options": None}
    body = parse_body(json.dumps(fields).encode())
    out = json.loads(body.rewritten(model="x", add_usage=True, cache_salt=salt))
    expected = {**fields, "model": "x", "stream_options": {"include_usage": True}}
    assert out == {**expected, "cache_salt": "s"} if salt else out == expected


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"", "invalid_json", "truncated"),
        (b"{", "invalid_json", "truncated"),
        (b'{"model":"m"} x', "invalid_json", "trailing"),
        (b"\xff", "invalid_json", "invalid character"),
        (b'{"model":"\xff"}', "invalid_json", "utf-8"),
        (b"[" * 100_000, "invalid_json", "nested too deeply"),
        (b"[]", "invalid_body", "is an array"),
        (b"null", "invalid_body", "null"),
        (b"{}", "invalid_model", "is missing"),
        (b'{"model":null}', "invalid_model", "is missing"),
        (b'{"model":7}', "invalid_model", "is a number"),
        (b'{"model":true}', "invalid_model", "is a boolean"),
        (b'{"model":["m"]}', "invalid_model", "is an array"),
    ],
)
def test_body_is_refused_with_the_cause_when_it_is_wrong(raw: bytes, code: str, says: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_body(raw)
    error = caught.value.error
    assert (error.status, error.code) == (400, code)
    assert says in error.message


@pytest.mark.parametrize(
    ("raw", "tokens"),
    [
        (b'{"model":"m"}', None),
        (b'{"model":"m","max_tokens":7}', 7),
        (b'{"model":"m","max_tokens":7,"max_completion_tokens":9}', 9),
        (b'{"model":"m","max_tokens":-1}', None),
        (b'{"model":"m","max_tokens":true}', None),
        (b'{"model":"m","max_tokens":"7"}', None),
    ],
)
def test_body_output_limit_when_stated_in_any_form(raw: bytes, tokens: int | None) -> None:
    assert parse_body(raw).max_output_tokens() == tokens
