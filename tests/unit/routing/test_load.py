from __future__ import annotations

import pytest

from pointsman_serving.routing.accuracy import Accuracy
from pointsman_serving.routing.latency import PoolLatency
from pointsman_serving.routing.load import REPORT_FADES_SECONDS, ReplicaLoad, dispatch_credit
from pointsman_serving.routing.replica import ReplicaState
from pointsman_serving.routing.ticket import Ticket
from pointsman_serving.routing.tokens import TokenModel
from pointsman_serving.routing.types import LoadReport
from tests.unit.routing.fleet import addresses, chat


def ticket(tokens: float, *, now: float = 0.0, stream: bool = True) -> Ticket:
    replica = ReplicaState(addresses("dense", "a")[0], latency=PoolLatency(), tokens=TokenModel())
    request = chat("x", stream=stream)
    return Ticket(
        replica=replica,
        request=request,
        belief=replica.cache.begin(request.prompt.blocks),
        now=now,
        predicted_cached_tokens=0.0,
        expected_cached_tokens=0.0,
        told=False,
        accuracy=Accuracy(),
        predicted_ttft_seconds=1.0,
        uncached_tokens=tokens,
        tokens_ahead=0.0,
        slot_was_free=True,
        probe=False,
    )


@pytest.mark.parametrize(("slots", "credit"), [(1, 1), (8, 1), (64, 4), (256, 16)])
def test_credit_is_a_sixteenth_of_the_slots(slots: int, credit: int) -> None:
    assert dispatch_credit(slots) == credit


def test_request_counts_from_its_dispatch_to_its_end() -> None:
    load = ReplicaLoad()
    first = ticket(500.0)
    load.dispatch(first, now=0.0)
    assert (load.in_flight, load.decoding, load.pending_tokens) == (1, 0, 500.0)
    load.first_token(first, now=1.0)
    assert (load.in_flight, load.decoding, load.pending_tokens) == (1, 1, 0.0)
    load.finish(first, now=2.0)
    assert (load.in_flight, load.decoding, load.pending_tokens) == (0, 0, 0.0)


def test_prefill_of_others_stays_pending_when_one_gets_its_first_token() -> None:
    load = ReplicaLoad()
    first = ticket(500.0)
    load.dispatch(first, now=0.0)
    load.dispatch(ticket(300.0), now=0.0)
    load.first_token(first, now=1.0)
    assert load.pending_tokens == 300.0


def test_oldest_prompt_is_partly_done_when_time_has_passed() -> None:
    load = ReplicaLoad()
    for tokens in (1_000.0, 500.0):
        load.dispatch(ticket(tokens), now=0.0)
    assert load.pending_ahead(0.0, 1e-3) == 1_500.0
    assert load.pending_ahead(0.4, 1e-3) == pytest.approx(1_100.0)


def test_streamed_prompt_is_never_done_before_its_first_token() -> None:
    load = ReplicaLoad()
    for tokens in (1_000.0, 500.0):
        load.dispatch(ticket(tokens), now=0.0)
    assert load.pending_ahead(100.0, 1e-3) == pytest.approx(600.0)


def test_prompt_that_does_not_stream_is_done_when_it_was_due() -> None:
    load = ReplicaLoad()
    load.dispatch(ticket(1_000.0, stream=False), now=0.0)
    assert load.pending_ahead(0.7, 1e-3) == pytest.approx(300.0)
    assert load.pending_ahead(5.0, 1e-3) == 0.0
    assert load.in_flight == 1
    load.dispatch(ticket(200.0, now=5.0), now=5.0)
    assert load.decoding == 1
    assert load.pending_tokens == 200.0


def test_batch_is_integrated_over_time() -> None:
    load = ReplicaLoad()
    first, second = ticket(10.0), ticket(10.0)
    for each in (first, second):
        load.dispatch(each, now=0.0)
    load.first_token(first, now=1.0)
    load.first_token(second, now=2.0)
    load.finish(first, now=4.0)
    assert load.batch_seconds(5.0) == pytest.approx(1 + 2 * 2 + 1)


def test_mean_age_grows_until_requests_end() -> None:
    load = ReplicaLoad()
    first = ticket(10.0)
    load.dispatch(first, now=0.0)
    load.dispatch(ticket(10.0, now=2.0), now=2.0)
    assert load.mean_age(4.0) == pytest.approx(3.0)
    load.finish(first, now=4.0)
    assert load.mean_age(4.0) == pytest.approx(2.0)


def test_only_what_exceeds_our_own_counts_when_a_replica_reports() -> None:
    load = ReplicaLoad()
    for _ in range(3):
        load.dispatch(ticket(10.0), now=0.0)
    load.report(LoadReport(waiting_requests=0.0, running_requests=3.0), now=0.0)
    assert load.others(0.0) == (0.0, 0.0)
    load.report(LoadReport(waiting_requests=4.0, running_requests=8.0), now=0.0)
    assert load.others(0.0) == (5.0, 4.0)


def test_reports_fade_and_are_never_negative() -> None:
    load = ReplicaLoad()
    load.report(LoadReport(waiting_requests=4.0, running_requests=8.0), now=0.0)
    assert sum(load.others(REPORT_FADES_SECONDS / 2)) == pytest.approx(6.0)
    assert load.others(REPORT_FADES_SECONDS) == (0.0, 0.0)


def test_idle_report_does_not_lower_what_a_busy_one_said_just_before() -> None:
    load = ReplicaLoad()
    load.report(LoadReport(waiting_requests=4.0, running_requests=8.0), now=0.0)
    load.report(LoadReport(waiting_requests=0.0, running_requests=0.0), now=0.0)
    assert sum(load.others(0.0)) == pytest.approx(12.0)


def test_replica_counts_as_busier_when_its_kv_cache_is_nearly_full() -> None:
    load = ReplicaLoad()
    load.report(LoadReport(kv_cache_usage=0.95), now=0.0)
    assert sum(load.others(0.0)) == 1.0


def test_report_without_values_changes_nothing() -> None:
    load = ReplicaLoad()
    load.report(LoadReport(), now=0.0)
    assert load.others(0.0) == (0.0, 0.0)
