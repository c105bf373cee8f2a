from __future__ import annotations

import pytest

from pointsman_serving.gateway.load_report import parse_load_report
from pointsman_serving.routing.types import LoadReport


def test_load_report_when_vllm_writes_it() -> None:
    value = b'JSON {"named_metrics": {"kv_cache_usage_perc": 0.25, "num_requests_waiting": 3.0}}'
    assert parse_load_report(value) == LoadReport(waiting_requests=3.0, kv_cache_usage=0.25)


def test_load_report_when_an_engine_counts_running_requests() -> None:
    value = b'JSON {"named_metrics": {"num_requests_running": 7, "unknown": 1}}'
    assert parse_load_report(value) == LoadReport(running_requests=7.0)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"JSON",
        b"JSON {",
        b"TEXT named_metrics.kv_cache_usage_perc=0.4",
        b'JSON {"named_metrics": {}}',
        b'JSON {"named_metrics": {"num_requests_waiting": -1}}',
        b'JSON {"named_metrics": {"num_requests_waiting": "3"}}',
        b'JSON {"named_metrics": 5}',
        b"JSON []",
        b"\xff\xfe",
    ],
)
@pytest.mark.pain_21
def test_load_report_says_nothing_when_it_cannot_be_used(value: bytes) -> None:
    assert parse_load_report(value) is None


def test_load_report_usage_is_at_most_one_when_an_engine_reports_more() -> None:
    value = b'JSON {"named_metrics": {"kv_cache_usage_perc": 42.0}}'
    assert parse_load_report(value) == LoadReport(kv_cache_usage=1.0)
