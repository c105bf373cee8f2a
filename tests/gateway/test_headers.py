from __future__ import annotations

import pytest

from pointsman_serving.gateway.headers import Header, parse_headers, reply_lines, request_id_of
from pointsman_serving.gateway.openai import BadRequestError


def new() -> str:
    return "new"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"abc-1", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"a\xff", False),
        (b"a\tb", False),
    ],
)
def test_headers_request_id_when_the_client_sends_one(value: bytes, kept: bool) -> None:
    expected = value.decode("latin-1") if kept else "new"
    assert request_id_of([(b"x-request-id", value)], new) == expected


def test_headers_are_dropped_when_they_are_not_for_replicas() -> None:
    raw: list[Header] = [
        (b"host", b"gw"),
        (b"authorization", b"Bearer secret"),
        (b"cookie", b"c=1"),
        (b"connection", b"keep-alive, x-hop"),
        (b"x-hop", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"accept-encoding", b"gzip"),
        (b"x-request-id", b"theirs"),
        (b"endpoint-load-metrics-format", b"TEXT"),
        (b"x-gateway-destination-endpoint", b"10.0.0.1:80"),
        (b"traceparent", b"00-1-2-01"),
        (b"content-type", b"application/json"),
        (b"x-session-id", b"s"),
    ]
    lines = parse_headers(raw, "id-1").to_replica()
    assert lines == (
        b"traceparent: 00-1-2-01\r\ncontent-type: application/json\r\nx-session-id: s\r\n"
        b"x-request-id: id-1\r\nendpoint-load-metrics-format: JSON\r\n"
    )


def test_headers_are_few_when_they_go_to_a_third_party() -> None:
    raw: list[Header] = [
        (b"x-forwarded-for", b"10.1.2.3"),
        (b"x-session-id", b"s"),
        (b"authorization", b"Bearer secret"),
        (b"content-type", b"application/json"),
        (b"traceparent", b"00-1-2-01"),
    ]
    assert parse_headers(raw, "i").to_external() == (
        b"content-type: application/json\r\ntraceparent: 00-1-2-01\r\n"
        b"x-request-id: i\r\nendpoint-load-metrics-format: JSON\r\n"
    )


def test_headers_tenant_differs_when_the_credential_differs() -> None:
    a = parse_headers([(b"authorization", b"Bearer a")], "i").tenant
    b = parse_headers([(b"authorization", b"Bearer b")], "i").tenant
    assert a != b
    assert "Bearer" not in a
    assert parse_headers([], "i").tenant == ""


def test_headers_fairness_id_is_the_tenant_when_none_is_stated() -> None:
    credential = (b"authorization", b"Bearer a")
    stated = (b"x-llm-d-inference-fairness-id", b"f" * 200)
    headers = parse_headers([credential], "i")
    assert headers.fairness_id == headers.tenant
    trusted = parse_headers([credential, stated], "i", trust_fairness=True)
    assert trusted.fairness_id == "f" * 128
    # Anybody could invent ids, each with a share of its own.
    assert parse_headers([credential, stated], "i").fairness_id == headers.tenant
    assert parse_headers([], "i").fairness_id == ""


@pytest.mark.parametrize("name", [b"x-session-id", b"x_session_id"])
def test_headers_conversation_when_either_spelling_is_used(name: bytes) -> None:
    assert parse_headers([(name, b"talk")], "i").conversation == "talk"


def test_headers_slo_when_stated_in_milliseconds() -> None:
    assert parse_headers([(b"x-llm-d-slo-ttft-ms", b"250")], "i").ttft_slo_seconds == 0.25


@pytest.mark.parametrize("value", [b"abc", b"0", b"-5", b"nan", b"inf", b""])
def test_headers_slo_is_refused_when_it_is_no_time(value: bytes) -> None:
    with pytest.raises(BadRequestError, match="x-llm-d-slo-ttft-ms"):
        parse_headers([(b"x-llm-d-slo-ttft-ms", value)], "i")


def test_headers_of_replies_keep_the_engines_own_when_relayed() -> None:
    raw: list[Header] = [
        (b"date", b"today"),
        (b"content-length", b"5"),
        (b"x-request-id", b"engine"),
        (b"connection", b"keep-alive"),
        (b"endpoint-load-metrics", b"JSON {}"),
        (b"content-type", b"text/plain"),
    ]
    assert reply_lines(raw) == b"date: today\r\ncontent-type: text/plain\r\n"
