from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from pointsman_kube.errors import Unavailable
from pointsman_kube.kinds import SECRET, Ref
from pointsman_operator.secret_reader import SecretReader, decoded
from tests.unit.operator_shell.fake_kube import FakeKube


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def put(kube: FakeKube, name: str, text: str) -> None:
    ref = Ref(kind=SECRET, namespace="default", name=name)
    secret: dict[str, Any] = {"metadata": {"name": name, "namespace": "default"}}
    secret["data"] = {"key": base64.b64encode(text.encode()).decode()}
    kube.objects[str(ref)] = secret


def reader(kube: FakeKube, clock: Clock) -> SecretReader:
    return SecretReader(kube, clock=clock)  # type: ignore[arg-type]


async def test_asks_once_when_many_need_the_same_secret() -> None:
    kube, clock = FakeKube(), Clock()
    put(kube, "hf", "one")
    secrets = reader(kube, clock)
    found = await asyncio.gather(*(secrets.read("default", "hf") for _ in range(20)))
    assert ["one"] * 20 == [decoded(secret)["key"] for secret in found]
    assert 1 == len(kube.calls)


async def test_tells_the_new_value_when_the_old_one_has_run_out() -> None:
    kube, clock = FakeKube(), Clock()
    put(kube, "hf", "one")
    secrets = reader(kube, clock)
    await secrets.read("default", "hf")
    put(kube, "hf", "two")
    clock.now += 29.0
    assert {"key": "one"} == decoded(await secrets.read("default", "hf"))
    clock.now += 1.0
    assert {"key": "two"} == decoded(await secrets.read("default", "hf"))


async def test_looks_sooner_when_the_secret_was_missing() -> None:
    kube, clock = FakeKube(), Clock()
    secrets = reader(kube, clock)
    assert await secrets.read("default", "hf") is None
    put(kube, "hf", "one")
    clock.now += 5.0
    assert {"key": "one"} == decoded(await secrets.read("default", "hf"))


async def test_asks_seldom_enough_when_there_are_many_secrets() -> None:
    kube, clock = FakeKube(), Clock()
    secrets = reader(kube, clock)
    for number in range(500):
        put(kube, f"s-{number}", "x")
        await secrets.read("default", f"s-{number}")
    # 500 in 250 s are two calls a second.
    assert 250.0 == secrets.ttl_seconds


async def test_does_not_say_missing_when_the_server_is_away() -> None:
    kube, clock = FakeKube(), Clock()
    kube.away = True
    secrets = reader(kube, clock)
    with pytest.raises(Unavailable):
        await secrets.read("default", "hf")
    assert secrets.held("default", "hf") is None
    kube.away = False
    put(kube, "hf", "one")
    assert {"key": "one"} == decoded(await secrets.read("default", "hf"))


def test_leaves_out_what_is_not_text_when_decoding() -> None:
    binary = base64.b64encode(b"\xff\xfe").decode()
    assert {"a": "x"} == decoded({"data": {"a": "eA==", "b": binary, "c": "%%"}})
