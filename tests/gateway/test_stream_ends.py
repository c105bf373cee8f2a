"""Ways to break a stream, a table or a client at the worst moment: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from pointsman_api.route_table import Route, RouteTable, Rule, RuleMatch, Target
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.routing.breaker import BreakerState
from pointsman_serving.routing.types import Api
from tests.gateway.fake_engine import (
    DONE,
    USAGE_EVENT,
    Behaviour,
    Call,
    FakeEngine,
    chunk,
    gated,
    head,
    said_before,
    status,
    token_event,
    word_stream,
)
from tests.gateway.harness import FAST, address_of, ask, chat, gateway_to, post, table_of, until
from tests.gateway.test_continuation import read

HEAD = ("content-type: text/event-stream", "transfer-encoding: chunked")
WORDS = 12
FULL = "".join(f"w{number} " for number in range(WORDS))
STREAM = post(chat(stream=True, max_tokens=30))
WITH_USAGE = post(chat(stream=True, max_tokens=30, stream_options={"include_usage": True}))


def begun(count: int, *, finish: bool = False) -> bytes:
    """The first tokens of a stream, as chunks."""
    return b"".join(
        chunk(
            token_event(
                number,
                ids=[number],
                text=f"w{number} ",
                finish="stop" if finish and number == count - 1 else None,
            )
        )
        for number in range(count)
    )


async def start(call: Call, *, revision: str = "r") -> None:
    await call.write(head(200, *HEAD, f"x-pointsman-revision: {revision}"))


def sends(*parts: bytes, reset: bool = True) -> Behaviour:
    """A stream of these bytes, which then breaks."""

    async def run(call: Call) -> None:
        await start(call)
        for part in parts:
            await call.write(part)
            await asyncio.sleep(0.03)
        if reset:
            call.reset()

    return run


@contextlib.asynccontextmanager
async def engines_of(
    *first: Behaviour, names: str = "ab", then: Behaviour | None = None
) -> AsyncIterator[list[FakeEngine]]:
    """Engines of which any one treats the next requests so."""
    shared = list(first)
    async with contextlib.AsyncExitStack() as stack:
        found = [
            FakeEngine(name, behaviour=then or word_stream(WORDS), once=shared) for name in names
        ]
        for engine in found:
            await stack.enter_async_context(engine.running())
        yield found


async def test_usage_comes_once_when_the_stream_breaks_right_after_it() -> None:
    opening = token_event(0, ids=[], text="").replace(
        b'"model"', b'"prompt_token_ids":[1,2,3],"model"'
    )
    first = sends(chunk(opening), begun(4, finish=True), chunk(USAGE_EVENT))
    async with engines_of(first) as engines, gateway_to(*engines) as gateway:
        found = read(await ask(gateway, WITH_USAGE))
        series = gateway.metrics.series("m", "p", Api.CHAT)
        # What the engine counted is counted here as well.
        assert (10, 5) == (series.prompt_tokens.total, series.completion_tokens.total)
    assert (1, [], 1) == (len(found.usages), found.errors, found.done)


async def test_usage_is_counted_when_the_engine_could_not_tell_it_any_more() -> None:
    first = sends(begun(4, finish=True))
    async with engines_of(first) as engines, gateway_to(*engines) as gateway:
        assert [] == read(await ask(gateway, STREAM)).errors
        assert 4 == gateway.metrics.series("m", "p", Api.CHAT).completion_tokens.total


async def test_text_before_an_event_that_is_no_text_is_passed_on() -> None:
    odd = b'data: {"choices":[{"index":0,"delta":{"content":"\xff"},"token_ids":[6]}]}\n\n'
    together = chunk(token_event(3, ids=[3], text="w3 ") + odd)
    async with engines_of(sends(begun(3), together)) as engines, gateway_to(*engines) as gateway:
        reply = await ask(gateway, STREAM)
    assert b'"w3 "' in reply.body
    assert b"stream_broken" in reply.body


@pytest.mark.parametrize("cut", [10, 60, 120, 150])
@pytest.mark.parametrize("how", ["chunked", "until close"])
async def test_half_an_event_is_not_passed_on_when_the_body_ends_in_order(
    cut: int, how: str
) -> None:
    async def first(call: Call) -> None:
        half = token_event(3, ids=[3], text="w3 ")[:cut]
        if how == "chunked":
            await sends(begun(3), chunk(half) + b"0\r\n\r\n", reset=False)(call)
            return
        await call.write(head(200, HEAD[0], "x-pointsman-revision: r", "connection: close"))
        for number in range(3):
            await call.write(token_event(number, ids=[number], text=f"w{number} "))
        await call.write(half)
        call.writer.close()

    async with engines_of(first) as engines, gateway_to(*engines) as gateway:
        found = read(await ask(gateway, STREAM))
    assert (FULL, []) == (found.text, found.errors)


async def test_event_gets_its_blank_line_when_the_body_ends_without_it() -> None:
    last = chunk(token_event(3, ids=[3], text="w3 ")[:-2]) + b"0\r\n\r\n"
    async with (
        engines_of(sends(begun(3), last, reset=False)) as engines,
        gateway_to(*engines) as gateway,
    ):
        reply = await ask(gateway, STREAM)
    assert b"}data:" not in reply.body
    assert FULL == read(reply).text


@pytest.mark.parametrize("how", ["error", "truncate", "silence"])
async def test_all_streams_go_on_when_a_replica_fails_with_many(how: str) -> None:
    count = 40
    die = asyncio.Event()

    async def dying(call: Call) -> None:
        await start(call)
        await call.write(begun(4))
        await die.wait()
        if how == "error":
            await call.write(chunk(b'data: {"error":{"message":"dead","code":500}}\n\n' + DONE))
        if how != "silence":
            await call.write(b"0\r\n\r\n")
        else:
            await asyncio.sleep(60)

    # No budget at all: what is continued adds no load.
    limits = replace(FAST, between_tokens_timeout_seconds=1.0, retry_budget_percent=0.0)
    table = table_of(slots=128, resilience=limits)
    a, b = FakeEngine("a", behaviour=dying), FakeEngine("b", behaviour=word_stream(WORDS))
    async with a.running(), b.running(), gateway_to(a, table=table, slots=128) as gateway:
        asked = [
            asyncio.ensure_future(ask(gateway, post(chat(text=str(n), stream=True))))
            for n in range(count)
        ]
        await until(lambda: a.active == count)
        gateway.plane.set_replicas("p", [address_of(each, slots=128) for each in (a, b)])
        await asyncio.sleep(0.1)
        die.set()
        found = [read(await each) for each in asked]
    assert [] == [each.errors for each in found if each.errors]
    assert {FULL} == {each.text for each in found}


def two_pools(rules: Sequence[Rule]) -> RouteTable:
    pool = table_of().pools["p"]
    own = Rule(name="own", targets=(Target(pool="p"),), resilience=FAST)
    return RouteTable(
        pools={"p": pool, "q": replace(pool, name="q")},
        routes={
            "m": Route(policy="policy", rules=tuple(rules)),
            "other": Route(policy="other", rules=(own,)),
        },
    )


async def test_stream_goes_on_by_its_own_rule_when_it_has_grown_out_of_it() -> None:
    short = Rule(
        name="short",
        targets=(Target(pool="p"),),
        resilience=FAST,
        matches=(RuleMatch(max_input_tokens=20),),
    )
    long = Rule(name="long", targets=(Target(pool="q"),), resilience=FAST)
    first = word_stream(40, breaks_after=30)
    async with (
        engines_of(first, then=word_stream(40)) as engines,
        gateway_to(*engines, table=two_pools([short, long])) as gateway,
    ):
        found = read(await asyncio.wait_for(ask(gateway, STREAM), 5))
    assert ("".join(f"w{n} " for n in range(40)), []) == (found.text, found.errors)


async def test_stream_goes_on_in_its_pool_when_the_rule_leaves_it() -> None:
    def table(pool: str) -> RouteTable:
        return two_pools([Rule(name="default", targets=(Target(pool=pool),), resilience=FAST)])

    go = asyncio.Event()

    async def first(call: Call) -> None:
        await start(call)
        await call.write(begun(4))
        await go.wait()
        call.reset()

    async with engines_of(first) as engines, gateway_to(*engines, table=table("p")) as gateway:
        asked = asyncio.ensure_future(ask(gateway, STREAM))
        await until(lambda: sum(len(engine.calls) for engine in engines) == 1)
        await asyncio.sleep(0.05)
        gateway.plane.set_table(table("q"))
        go.set()
        found = read(await asyncio.wait_for(asked, 5))
    assert (FULL, []) == (found.text, found.errors)


async def test_stream_ends_at_once_when_its_pool_has_left_the_table() -> None:
    go = asyncio.Event()

    async def first(call: Call) -> None:
        await start(call)
        await call.write(begun(4))
        await go.wait()
        call.reset()

    async with engines_of(first) as engines, gateway_to(*engines) as gateway:
        asked = asyncio.ensure_future(ask(gateway, STREAM))
        await until(lambda: sum(len(engine.calls) for engine in engines) == 1)
        await asyncio.sleep(0.05)
        gateway.plane.set_table(RouteTable())
        go.set()
        found = read(await asyncio.wait_for(asked, 3))
        assert ["stream_broken"] == [error["code"] for error in found.errors]
        gateway.plane.replicas["p"] = ()


@pytest.mark.parametrize("breaks", [False, True])
async def test_repetition_stays_inside_when_the_pool_leaves_the_table_meanwhile(
    breaks: bool,
) -> None:
    async def late(call: Call) -> None:
        await asyncio.sleep(0.3)
        await word_stream(WORDS)(call)

    first = [sends(begun(4))] if breaks else []
    async with engines_of(*first, then=late) as engines, gateway_to(*engines) as gateway:
        asked = asyncio.ensure_future(ask(gateway, STREAM))
        await until(lambda: sum(len(engine.calls) for engine in engines) == 1 + breaks)
        gateway.plane.set_table(RouteTable())
        reply = await asked
        gateway.plane.replicas["p"] = ()
    assert FULL == read(reply).text
    assert b"token_ids" not in reply.body


async def test_stream_finds_its_revision_when_a_roll_out_has_left_one_of_it() -> None:
    go = asyncio.Event()

    async def first(call: Call) -> None:
        if said_before(call):
            await word_stream(WORDS, revision="old")(call)
            return
        await start(call, revision="old")
        await call.write(begun(4))
        await go.wait()
        call.reset()

    async with contextlib.AsyncExitStack() as stack:
        old = FakeEngine("old", behaviour=first)
        last = FakeEngine("last", behaviour=word_stream(WORDS, revision="old"))
        new = [
            FakeEngine(f"new{n}", behaviour=word_stream(WORDS, revision="new")) for n in range(12)
        ]
        for engine in (old, last, *new):
            await stack.enter_async_context(engine.running())
        gateway = await stack.enter_async_context(gateway_to(old))
        asked = [
            asyncio.ensure_future(ask(gateway, post(chat(text=str(n), stream=True))))
            for n in range(6)
        ]
        await until(lambda: old.active == 6)
        await asyncio.sleep(0.05)
        gateway.plane.set_replicas("p", [address_of(engine) for engine in (last, *new)])
        go.set()
        found = [read(await each) for each in asked]
    assert ({FULL}, []) == ({each.text for each in found}, [each for each in found if each.errors])


@pytest.mark.parametrize("event", ["its own", "the same"])
async def test_no_text_is_lost_when_a_repetition_goes_wrong_after_new_text(event: str) -> None:
    async def wrong(call: Call) -> None:
        before = said_before(call)
        text = "".join(f"w{n} " for n in before)
        good = token_event(0, ids=[*before, 4], text=text + "w4 ")
        odd = good.replace(b'},"finish', b',"audio":{}},"finish')
        await sends(chunk(good + odd if event == "its own" else odd))(call)

    async with (
        engines_of(sends(begun(4)), wrong, names="abc") as engines,
        gateway_to(*engines) as gateway,
    ):
        found = read(await ask(gateway, STREAM))
    assert found.errors or found.text == FULL


@pytest.mark.parametrize("breaks", ["after the end", "for good", "not at all"])
async def test_gap_between_tokens_is_counted_right_when_a_stream_breaks(breaks: str) -> None:
    async def first(call: Call) -> None:
        await start(call)
        for number in range(8):
            last = breaks != "for good" and number == 7
            event = token_event(number, ids=[number], text="w ", finish="stop" if last else None)
            await call.write(chunk(event))
            await asyncio.sleep(0.05)
        if breaks == "not at all":
            await call.write(chunk(DONE) + b"0\r\n\r\n")
        else:
            call.reset()

    limits = replace(FAST, continues=breaks != "for good")
    async with (
        engines_of(first) as engines,
        gateway_to(*engines, table=table_of(resilience=limits)) as gateway,
    ):
        await ask(gateway, STREAM)
        await until(lambda: not gateway.plane.relays)
        tpot = gateway.metrics.series("m", "p", Api.CHAT).tpot
    # Half of it were counted where the events are.
    assert 0.045 < tpot.total / tpot.count < 0.2


async def test_body_counts_as_held_when_its_client_hears_of_its_waiting() -> None:
    gate = asyncio.Event()
    big = chat(text="x" * 500_000, stream=True)
    async with (
        engines_of(names="a", then=gated(gate)) as engines,
        gateway_to(*engines, table=table_of(slots=1), slots=1) as gateway,
    ):
        first = [asyncio.ensure_future(ask(gateway, STREAM)) for _ in range(2)]
        await until(lambda: engines[0].active == 2)
        waiting = [
            asyncio.ensure_future(ask(gateway, post(big, "x-pointsman-progress: true")))
            for _ in range(3)
        ]
        await until(lambda: len(gateway.plane.admission) == 3)
        await asyncio.sleep(1.3)  # the first comment has been sent
        assert gateway.plane.bodies.held >= 1_500_000
        gate.set()
        await asyncio.gather(*first, *waiting)
        assert 0 == gateway.plane.bodies.held


async def test_replica_is_not_thought_silent_when_its_client_reads_slowly() -> None:
    async def flood(call: Call) -> None:
        await start(call)
        number = 0
        while True:
            await call.write(chunk(token_event(number, ids=[number], text="x" * 20_000)))
            number += 1
            await asyncio.sleep(0.001)

    async with engines_of(flood) as engines, gateway_to(*engines) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(STREAM)
        await until(lambda: sum(engine.active for engine in engines) == 1)
        await asyncio.sleep(2.5)
        states = gateway.scheduler._pools["p"].states
        assert [False, False] == [state.hesitates(gateway.plane.clock()) for state in states]
        writer.transport.abort()


async def test_client_is_refused_when_it_says_what_only_gateways_say() -> None:
    body = chat(stream=True, vllm_xargs={"pointsman_continue": [1, 2, 3]})
    async with engines_of() as engines, gateway_to(*engines) as gateway:
        reply = await ask(gateway, post(body))
        assert (400, "reserved_argument") == (reply.status, reply.error["code"])
        assert [] == [engine.calls for engine in engines if engine.calls]


async def test_replica_is_ejected_when_each_failure_names_another_life() -> None:
    lives = iter(range(1000))

    async def crash(call: Call) -> None:
        await status(500, f"x-pointsman-instance: life{next(lives)}")(call)

    async def ejected(gateway: Gateway) -> bool:
        await ask(gateway, post(chat()))
        state = gateway.scheduler._pools["p"].states[0]
        return state.breaker.state is not BreakerState.CLOSED

    async with (
        engines_of(names="a", then=crash) as engines,
        gateway_to(*engines) as gateway,
    ):
        assert any([await ejected(gateway) for _ in range(6)])
