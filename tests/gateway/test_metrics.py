from __future__ import annotations

import re

import prometheus_client
import pytest

from pointsman_serving.gateway.histogram import Histogram
from pointsman_serving.gateway.metrics import OTHER, Metrics
from pointsman_serving.routing.types import Api, ReplicaKey, Usage
from tests.gateway.fake_engine import FakeEngine, answer, silence
from tests.gateway.harness import ask, chat, client_of, gateway_to, post, until


def text_of(metrics: Metrics) -> str:
    return prometheus_client.generate_latest(metrics.registry).decode()


def value_of(text: str, series: str) -> float:
    match = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert match, f"{series} is not in\n{text}"
    return float(match[1])


def test_histogram_counts_a_value_in_its_bucket_when_it_is_the_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert (histogram.count, histogram.total) == (4, 12.0)


@pytest.mark.pain_24
def test_metrics_labels_are_other_when_there_are_too_many() -> None:
    metrics = Metrics(version="1", max_values=2)
    for number in range(5):
        metrics.series(f"m{number}", "p", Api.CHAT).ended(200, 0.1)
    text = text_of(metrics)
    assert value_of(text, 'pointsman_gateway_requests_total{code="200",model="m1",pool="p"}') == 1
    other = f'pointsman_gateway_requests_total{{code="200",model="{OTHER}",pool="p"}}'
    assert value_of(text, other) == 3


def test_metrics_predicted_tokens_count_only_when_the_engine_reports_cached_ones() -> None:
    metrics = Metrics(version="1", max_values=9)
    series = metrics.series("m", "p", Api.CHAT)
    series.used(Usage(prompt_tokens=9, completion_tokens=1), 5)
    assert (series.cached_tokens, series.predicted_cached_tokens) == (0, 0)
    series.used(Usage(prompt_tokens=9, completion_tokens=1, cached_tokens=4), 5)
    assert (series.cached_tokens, series.predicted_cached_tokens) == (4, 5)


async def test_metrics_tell_what_happened_when_scraped(engine: FakeEngine) -> None:
    engine.behaviour = answer("a b c")
    async with gateway_to(engine) as gateway:
        await ask(gateway, post(chat()))
        await ask(gateway, post(chat(stream=True)))
        await ask(gateway, post(chat("nobody")))
        reply = await ask(gateway, b"GET /metrics HTTP/1.1\r\nhost: g\r\n\r\n")
    text = reply.body.decode()
    label = '{model="m",pool="p"}'
    assert value_of(text, 'pointsman_gateway_requests_total{code="200",model="m",pool="p"}') == 2
    assert value_of(text, 'pointsman_gateway_requests_total{code="404",model="other",pool=""}') == 1
    assert value_of(text, f"pointsman_gateway_prompt_tokens_total{label}") == 20
    assert value_of(text, f"pointsman_gateway_completion_tokens_total{label}") == 10
    assert value_of(text, f"pointsman_gateway_cached_tokens_total{label}") == 6
    assert value_of(text, 'pointsman_gateway_replicas{pool="p"}') == 1
    assert value_of(text, 'pointsman_gateway_in_flight{pool="p"}') == 0
    chat_series = '{api="chat/completions",model="m",pool="p"}'
    assert value_of(text, f"pointsman_gateway_time_to_first_token_seconds_count{chat_series}") == 1
    genai = (
        '{gen_ai_operation_name="chat",gen_ai_provider_name="pointsman",gen_ai_request_model="m"}'
    )
    assert value_of(text, f"gen_ai_server_request_duration_seconds_count{genai}") == 2
    assert "vllm:" not in text


async def test_metrics_count_lost_ejected_and_restarted_replicas_when_scraped(
    engine: FakeEngine,
) -> None:
    engine.behaviour = engine.health = silence()
    async with gateway_to(engine, silence_seconds=0.2, probe_seconds=0.1) as gateway:
        async with client_of(gateway) as client:
            await client.send(post(chat(stream=True)))
            await until(lambda: gateway.metrics.trouble.lost_replicas == {"p": 1})
        for value in ("01", "02"):
            gateway.scheduler.instance(ReplicaKey("p", "a"), value, now=gateway.plane.clock())
        text = text_of(gateway.metrics)
    assert value_of(text, 'pointsman_gateway_lost_replicas_total{pool="p"}') == 1
    assert value_of(text, 'pointsman_gateway_health_probes_total{result="silent"}') >= 2
    assert value_of(text, 'pointsman_gateway_replica_ejections_total{pool="p"}') == 1
    assert value_of(text, 'pointsman_gateway_replica_restarts_total{pool="p"}') == 1


async def test_metrics_count_nothing_twice_when_a_request_is_tried_again(
    engine: FakeEngine, other: FakeEngine
) -> None:
    from tests.gateway.fake_engine import status

    shared = [status(500)]
    engine.once = other.once = shared
    async with gateway_to(engine, other) as gateway:
        await ask(gateway, post(chat()))
        text = text_of(gateway.metrics)
    assert value_of(text, 'pointsman_gateway_requests_total{code="200",model="m",pool="p"}') == 1
    assert value_of(text, 'pointsman_gateway_retries_total{reason="status_500"}') == 1
