"""Streams whose replica fails go on at another one, and the client sees one stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from pointsman_api.route_table import Resilience
from pointsman_serving.engines.continuation import OBSTACLES
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from tests.gateway.cutting_proxy import Cut, CuttingProxy
from tests.gateway.harness import (
    FAST,
    Answer,
    FixedSource,
    ask,
    chat,
    client_of,
    events,
    post,
    table_of,
    until,
)
from tests.gateway.test_with_simulated import simulated

LENGTH = 30
BODY = chat(
    text="tell me of trains",
    stream=True,
    max_tokens=LENGTH,
    temperature=0,
    ignore_eos=True,
    stream_options={"include_usage": True},
)
QUICK = replace(FAST, between_tokens_timeout_seconds=0.5)


@dataclass
class Stream:
    """What a client makes of the events of one stream."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    created: set[int] = field(default_factory=set)
    finish: list[str] = field(default_factory=list)
    usages: list[dict[str, object]] = field(default_factory=list)
    errors: list[dict[str, object]] = field(default_factory=list)
    roles: int = 0
    done: int = 0


def read(reply: Answer) -> Stream:
    stream = Stream()
    for event in events(reply.body):
        if event.strip() == b"data: [DONE]":
            stream.done += 1
            continue
        chunk = json.loads(event[6:])
        if "error" in chunk:
            stream.errors.append(chunk["error"])
            continue
        stream.ids.add(chunk["id"])
        stream.created.add(chunk["created"])
        if chunk.get("usage"):
            stream.usages.append(chunk["usage"])
        for choice in chunk["choices"]:
            delta = choice.get("delta", {})
            stream.text += delta.get("content") or choice.get("text") or ""
            stream.roles += "role" in delta
            stream.tokens += choice.get("token_ids") or []
            if choice.get("finish_reason"):
                stream.finish.append(choice["finish_reason"])
    return stream


@contextlib.asynccontextmanager
async def cut_fleet(
    *cuts: int,
    how: Cut = Cut.RESET,
    resilience: Resilience = QUICK,
    slots: int = 64,
    revisions: Sequence[str] = "aa",
    **settings: object,
) -> AsyncIterator[tuple[Gateway, list[CuttingProxy]]]:
    """A gateway before Simulated engines.

    Args:
        cuts: after how many events the first reply of all breaks, the second, ...
    """
    left = list(cuts)
    async with contextlib.AsyncExitStack() as stack:
        proxies = []
        for number, revision in enumerate(revisions):
            address = await stack.enter_async_context(
                simulated(f"r{number}", "--speed=50", "--seed=7", revision=revision)
            )
            proxy = CuttingProxy(address, cuts=left, how=how)
            proxies.append(await stack.enter_async_context(proxy.running()))
        table = table_of(engine="Simulated", resilience=resilience, slots=slots)
        gateway = Gateway(
            settings=GatewaySettings(port=0, drain_seconds=1.0, **settings),  # type: ignore[arg-type]
            table=table,
        )
        lists = {"p": [replace(proxy.address, sequence_slots=slots) for proxy in proxies]}
        await stack.enter_async_context(gateway.running([FixedSource(lists)]))
        await until(lambda: len(gateway.plane.replicas["p"]) == len(proxies))
        plane = gateway.plane
        yield gateway, proxies
        await until(lambda: not plane.relays)
        assert (len(plane.admission), plane.kept_bodies.held) == (0, 0)
        for pool in gateway.scheduler.snapshot().pools:
            for replica in pool.replicas:
                assert (replica.in_flight, replica.decoding) == (0, 0)


async def unbroken(body: dict[str, object] = BODY, path: str = "/v1/chat/completions") -> Stream:
    async with cut_fleet() as (gateway, _):
        return read(await ask(gateway, post(body, path=path)))


def assert_same(expected: Stream, found: Stream) -> None:
    assert expected.text == found.text
    assert (1, 1, expected.roles) == (len(found.ids), len(found.created), found.roles)
    assert (expected.finish, 1, []) == (found.finish, found.done, found.errors)
    assert len(found.usages) == len(expected.usages)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert [u[name] for u in expected.usages] == [u[name] for u in found.usages]


@pytest.mark.pain_18
@pytest.mark.parametrize("cut", [1, 2, 3, 17, LENGTH, LENGTH + 1])
async def test_stream_is_the_unbroken_one_when_its_replica_resets_after_any_event(cut: int) -> None:
    expected = await unbroken()
    async with cut_fleet(cut) as (gateway, proxies):
        found = read(await ask(gateway, post(BODY)))
        # Nothing is asked again where only the end is missing.
        assert sum(proxy.replies for proxy in proxies) == (2 if cut < LENGTH + 1 else 1)
    assert_same(expected, found)


@pytest.mark.parametrize("how", list(Cut))
async def test_stream_goes_on_when_its_replica_fails_in_any_way(how: Cut) -> None:
    expected = await unbroken()
    async with cut_fleet(9, how=how) as (gateway, proxies):
        found = read(await ask(gateway, post(BODY)))
        assert 2 == sum(proxy.replies for proxy in proxies)
        assert 1 == sum(gateway.metrics.trouble.continuations.values())
    assert_same(expected, found)


async def test_stream_goes_on_each_time_when_it_breaks_many_times() -> None:
    long = {**BODY, "max_tokens": 200}
    expected = await unbroken(long)
    # Every reply is cut, each 18 events further than the last one: the repetition is one event.
    async with cut_fleet(*[20] * 10) as (gateway, proxies):
        found = read(await ask(gateway, post(long)))
        assert sum(proxy.replies for proxy in proxies) == 11
    assert_same(expected, found)


@pytest.mark.pain_18
@pytest.mark.parametrize("how", list(Cut))
@pytest.mark.parametrize("cut", [1, 2])
async def test_stream_goes_on_when_the_next_replica_fails_in_its_repetition(
    cut: int, how: Cut
) -> None:
    expected = await unbroken()
    patient = replace(QUICK, attempts=4, first_token_timeout_seconds=0.5)
    async with cut_fleet(9, cut, how=how, resilience=patient, revisions="aaa") as (gateway, _):
        found = read(await ask(gateway, post(BODY)))
    assert_same(expected, found)


@pytest.mark.pain_18
async def test_stream_that_has_got_on_goes_on_when_the_retry_budget_is_spent() -> None:
    expected = await unbroken()
    spent = replace(QUICK, retry_budget_percent=0.0)
    async with cut_fleet(20, how=Cut.SILENCE, resilience=spent) as (gateway, _):
        found = read(await ask(gateway, post(BODY)))
    assert_same(expected, found)


async def test_completion_goes_on_when_its_replica_fails() -> None:
    body: dict[str, object] = {
        "model": "m",
        "prompt": "tell me of trains",
        "stream": True,
        "max_tokens": LENGTH,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    expected = await unbroken(body, "/v1/completions")
    async with cut_fleet(9) as (gateway, _):
        found = read(await ask(gateway, post(body, path="/v1/completions")))
    assert len(expected.text) > 20
    assert_same(expected, found)


async def test_token_ids_come_once_when_the_client_asked_for_them() -> None:
    body = {**BODY, "return_token_ids": True}
    expected = await unbroken(body)
    async with cut_fleet(9) as (gateway, _):
        reply = await ask(gateway, post(body))
    found = read(reply)
    assert len(expected.tokens) == LENGTH
    assert expected.tokens == found.tokens
    assert 1 == reply.body.count(b"prompt_token_ids")
    assert_same(expected, found)


async def test_token_ids_stay_inside_when_the_client_did_not_ask_for_them() -> None:
    async with cut_fleet() as (gateway, proxies):
        reply = await ask(gateway, post(BODY))
        sent = b"".join(data for proxy in proxies for data in proxy.requests)
    assert b'"return_token_ids":true' in sent
    assert b"token_ids" not in reply.body
    assert b"x-pointsman-revision" not in "\n".join(reply.lines).encode()


async def test_stream_is_ended_by_the_gateway_when_only_the_end_is_missing() -> None:
    expected = await unbroken()
    # The finish reason comes with the last token; the usage and [DONE] follow.
    async with cut_fleet(LENGTH + 1) as (gateway, proxies):
        found = read(await ask(gateway, post(BODY)))
        assert 1 == sum(proxy.replies for proxy in proxies)
    assert_same(expected, found)


SAMPLE = {
    "n": 2,
    "best_of": 2,
    "use_beam_search": True,
    "echo": True,
    "logprobs": True,
    "top_logprobs": 2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "bad_words": ["x"],
    "response_format": {"type": "json_object"},
    "tool_choice": "required",
}


@pytest.mark.parametrize("name", sorted(SAMPLE))
async def test_stream_ends_with_the_error_event_when_going_on_would_be_wrong(name: str) -> None:
    assert name in OBSTACLES
    body = {**BODY, name: SAMPLE[name]}
    async with cut_fleet(2) as (gateway, proxies):
        reply = await ask(gateway, post(body))
        sent = b"".join(data for proxy in proxies for data in proxy.requests)
        replies = sum(proxy.replies for proxy in proxies)
    assert b"return_token_ids" not in sent
    if reply.status == 200 and replies:
        found = read(reply)
        assert (1, "stream_broken") == (replies, found.errors[0]["code"])
        assert name in str(found.errors[0]["message"])
        assert found.done == 1
    else:
        # The Simulated engine does not serve it.
        assert reply.status == 400


async def test_stream_ends_with_the_error_event_when_the_rule_does_not_continue() -> None:
    async with cut_fleet(5, resilience=replace(QUICK, continues=False)) as (
        gateway,
        proxies,
    ):
        found = read(await ask(gateway, post(BODY)))
        assert 1 == sum(proxy.replies for proxy in proxies)
    assert ["stream_broken"] == [error["code"] for error in found.errors]


async def test_stream_ends_with_the_error_event_when_the_other_revision_differs() -> None:
    # Its own replica dies of it again each time.
    async with cut_fleet(5, *[1] * 9, revisions="ab") as (gateway, _):
        found = read(await ask(gateway, post(BODY)))
    assert ["stream_broken"] == [error["code"] for error in found.errors]
    assert 1 == found.done


async def test_stream_goes_on_at_its_own_revision_when_others_are_there() -> None:
    expected = await unbroken()
    # Asking the wrong ones is no attempt.
    async with cut_fleet(5, revisions="abbbba") as (gateway, _):
        found = read(await ask(gateway, post(BODY)))
    assert_same(expected, found)


async def test_stream_goes_on_when_the_next_replicas_die_at_the_same_time() -> None:
    expected = await unbroken()
    async with cut_fleet(20, 0, 0, revisions="aaa") as (gateway, proxies):
        found = read(await ask(gateway, post(BODY)))
        assert 4 == sum(proxy.replies for proxy in proxies)
    assert_same(expected, found)


async def test_stream_goes_on_when_the_others_were_full_as_it_broke() -> None:
    bodies = [{**BODY, "messages": [{"role": "user", "content": f"story {n}"}]} for n in range(12)]
    expected = [await unbroken(body) for body in bodies]
    async with cut_fleet(*[9] * 4, slots=1) as (gateway, _):
        waited: set[int] = set()

        async def watch() -> None:
            while True:
                waited.add(len(gateway.plane.admission))
                await asyncio.sleep(0.001)

        watching = asyncio.ensure_future(watch())
        found = await asyncio.gather(*(ask(gateway, post(body)) for body in bodies))
        watching.cancel()
        for stream, reply in zip(expected, found, strict=True):
            assert_same(stream, read(reply))
        assert 4 == sum(gateway.metrics.trouble.continuations.values())
    assert max(waited) >= 8


async def test_stream_goes_on_when_every_replica_stalls_after_a_few_tokens() -> None:
    short = {**BODY, "max_tokens": 12}
    expected = await unbroken(short)
    quick = replace(QUICK, between_tokens_timeout_seconds=0.2)
    # The repetition is one event more each time, and one or two new tokens follow.
    cuts = [3] + [4] * 6
    async with cut_fleet(*cuts, how=Cut.SILENCE, resilience=quick) as (gateway, _):
        found = read(await ask(gateway, post(short)))
        assert gateway.metrics.trouble.continuations["stalled"] >= 5
    assert_same(expected, found)


async def test_stream_ends_when_every_replica_dies_of_it() -> None:
    # Each repeats what was said in its first events and breaks before anything new comes.
    async with cut_fleet(6, *[1] * 9) as (gateway, proxies):
        found = read(await ask(gateway, post(BODY)))
        assert sum(proxy.replies for proxy in proxies) <= 4
    assert ["stream_broken"] == [error["code"] for error in found.errors]


async def test_stream_is_not_continued_when_the_client_has_left() -> None:
    async with cut_fleet(9, how=Cut.SILENCE) as (gateway, proxies):
        async with client_of(gateway) as client:
            await client.send(post(BODY))
            await client.reader.readuntil(b"data: ")
        await until(lambda: not gateway.plane.relays)
        await asyncio.sleep(0.7)
        assert 1 == sum(proxy.replies for proxy in proxies)


async def test_stream_ends_with_the_error_event_when_no_memory_is_left_to_keep_bodies() -> None:
    async with cut_fleet(9, max_kept_body_bytes=10) as (gateway, _):
        found = read(await ask(gateway, post(BODY)))
    assert ["stream_broken"] == [error["code"] for error in found.errors]


async def test_parallel_streams_go_on_when_half_of_them_are_cut() -> None:
    bodies = [{**BODY, "messages": [{"role": "user", "content": f"story {n}"}]} for n in range(16)]
    expected = [await unbroken(body) for body in bodies[:4]]
    async with cut_fleet(*[7] * 8) as (gateway, _):
        found = await asyncio.gather(*(ask(gateway, post(body)) for body in bodies))
        for stream, reply in zip(expected, found, strict=False):
            assert_same(stream, read(reply))
        assert all(read(reply).done == 1 and not read(reply).errors for reply in found)
