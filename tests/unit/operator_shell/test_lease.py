from __future__ import annotations

import asyncio

import pytest

from pointsman_operator.lease import Election, LeaseTimes
from tests.unit.operator_shell.fake_kube import FakeKube

NAME = "leases.coordination.k8s.io system/operator"
TIMES = LeaseTimes(lease_seconds=1.0, renew_deadline_seconds=0.6, retry_seconds=0.05)


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def candidate(kube: FakeKube, identity: str, clock: Clock | None = None) -> Election:
    options = {"clock": clock} if clock is not None else {}
    return Election(
        kube,  # type: ignore[arg-type]
        namespace="system",
        name="operator",
        identity=identity,
        times=TIMES,
        **options,  # type: ignore[arg-type]
    )


async def win(election: Election, seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        await election.win()


async def test_first_one_leads_when_there_is_no_lease() -> None:
    kube = FakeKube()
    first, second = candidate(kube, "first"), candidate(kube, "second")
    await win(first)
    assert first.leads
    with pytest.raises(TimeoutError):
        await win(second, 0.3)
    assert not second.leads
    assert "first" == second.holder
    assert 1 == kube.objects[NAME]["spec"]["leaseTransitions"]


async def test_one_of_two_leads_when_both_ask_at_once() -> None:
    kube = FakeKube()
    both = [candidate(kube, "first"), candidate(kube, "second")]
    tasks = [asyncio.create_task(election.win()) for election in both]
    await asyncio.wait(tasks, timeout=0.3)
    assert 1 == sum(election.leads for election in both)
    for task in tasks:
        task.cancel()


async def test_keeps_the_lease_when_it_renews() -> None:
    kube = FakeKube()
    first, second = candidate(kube, "first"), candidate(kube, "second")
    await win(first)
    hold = asyncio.create_task(first.hold())
    with pytest.raises(TimeoutError):
        await win(second, 1.5)
    assert first.leads
    # One call for a renewal: nobody else writes the lease, so it need not be read.
    first_reads = sum(call.startswith("get") for call in kube.calls[:3])
    assert 1 == first_reads
    hold.cancel()


async def test_second_one_takes_over_when_the_first_is_silent() -> None:
    kube = FakeKube()
    first, second = candidate(kube, "first"), candidate(kube, "second")
    await win(first)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await win(second)
    assert 1.0 <= loop.time() - started < 1.4
    assert second.leads
    assert 2 == kube.objects[NAME]["spec"]["leaseTransitions"]


async def test_waits_its_own_time_when_the_clocks_are_hours_apart() -> None:
    kube = FakeKube()
    await win(candidate(kube, "first"))
    # Whatever the lease says about times, only that it does not change counts.
    kube.objects[NAME]["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    clock = Clock()
    second = candidate(kube, "second", clock)
    assert not await second._try()
    clock.now += 0.5
    assert not await second._try()
    kube.objects[NAME]["spec"]["renewTime"] = "1999-01-01T00:00:00.100000Z"
    clock.now += 0.5
    assert not await second._try()
    clock.now += 0.9
    assert not await second._try()
    clock.now += 0.2
    assert await second._try()


async def test_stops_leading_by_itself_when_the_server_is_away() -> None:
    kube, clock = FakeKube(), Clock()
    first = candidate(kube, "first", clock)
    await win(first)
    kube.away = True
    clock.now += 0.59
    assert first.leads
    clock.now += 0.02
    assert not first.leads


async def test_hold_ends_before_others_may_lead_when_the_server_is_away() -> None:
    kube = FakeKube()
    first = candidate(kube, "first")
    await win(first)
    kube.away = True
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.timeout(2.0):
        await first.hold()
    assert loop.time() - started < TIMES.lease_seconds
    assert not first.leads


async def test_hold_ends_when_somebody_else_has_the_lease() -> None:
    kube = FakeKube()
    first = candidate(kube, "first")
    await win(first)
    kube.objects[NAME]["spec"]["holderIdentity"] = "thief"
    kube.objects[NAME]["metadata"]["resourceVersion"] = "999"
    async with asyncio.timeout(2.0):
        await first.hold()
    assert not first.leads
    assert "thief" == kube.objects[NAME]["spec"]["holderIdentity"]


async def test_goes_on_leading_when_one_renewal_fails() -> None:
    kube = FakeKube()
    first = candidate(kube, "first")
    await win(first)
    hold = asyncio.create_task(first.hold())
    kube.away = True
    await asyncio.sleep(0.15)
    kube.away = False
    await asyncio.sleep(0.8)
    assert first.leads
    hold.cancel()


async def test_next_one_leads_at_once_when_the_lease_was_given_back() -> None:
    kube = FakeKube()
    first, second = candidate(kube, "first"), candidate(kube, "second")
    await win(first)
    await first.release()
    assert not first.leads
    await win(second, 0.3)
    assert second.leads


async def test_does_not_give_back_a_lease_when_it_is_not_its_own() -> None:
    kube = FakeKube()
    first, second = candidate(kube, "first"), candidate(kube, "second")
    await win(first)
    await second.release()
    assert first.leads
    assert "first" == kube.objects[NAME]["spec"]["holderIdentity"]


def test_refuses_times_when_two_could_lead() -> None:
    with pytest.raises(ValueError, match="renew_deadline_seconds"):
        LeaseTimes(lease_seconds=10.0, renew_deadline_seconds=10.0)
