from __future__ import annotations

import contextlib
import gzip
import re
import time
from collections.abc import AsyncIterator

import pytest

from pointsman_operator.ray_api import RayApi, RayError
from tests.machine import needs_ipv6
from tests.unit.operator_shell.raw_pod import RawPod, document, endless, plain, raw_pod

LIMIT = 100_000
PATH = "/api/serve/applications/"


@contextlib.asynccontextmanager
async def api(**options: float) -> AsyncIterator[RayApi]:
    found = RayApi(most_bytes=LIMIT, **options)
    try:
        yield found
    finally:
        await found.close()


async def refused(pod: RawPod, **options: float) -> str:
    async with api(**options) as asked:
        with pytest.raises(RayError) as caught:
            await asked.fetch_applications(f"http://{pod.host}:{pod.port}", "t")
    return str(caught.value)


async def test_the_list_is_read_when_it_fits() -> None:
    async with raw_pod(lambda: document({"applications": {}})) as pod, api() as asked:
        url = f"http://127.0.0.1:{pod.port}/"
        assert {"applications": {}} == await asked.fetch_applications(url, "t0ken")
    (request,) = pod.requests
    assert request.startswith(f"GET {PATH} ")
    assert "authorization: bearer t0ken" in request.lower()
    assert "accept-encoding: identity" in request.lower()


async def test_the_list_is_read_when_it_comes_in_chunks() -> None:
    def chunks() -> list[bytes]:
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        return [head, b'6\r\n{"a": \r\n', b"2\r\n1}\r\n", b"0\r\n\r\n"]

    async with raw_pod(chunks) as pod, api() as asked:
        assert {"a": 1} == await asked.fetch_applications(f"http://127.0.0.1:{pod.port}", "")


async def test_an_endless_answer_is_refused_when_it_exceeds_the_limit() -> None:
    async with raw_pod(lambda: endless(b" " * 1000)) as pod:
        said = await refused(pod)
    assert f"http://127.0.0.1:{pod.port}{PATH}: the answer had " in said
    assert f"at most {LIMIT} are read" in said
    (seen,) = re.findall(r"had (\d+) bytes so far", said)
    # No more than one reading of the socket above it.
    assert LIMIT < int(seen) < LIMIT + 300_000


async def test_a_long_answer_is_refused_unread_when_it_says_how_long_it_is() -> None:
    async with raw_pod(lambda: plain(b" " * (LIMIT + 1))) as pod:
        assert f"has {LIMIT + 1} bytes; at most {LIMIT} are read" in await refused(pod)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP"])
async def test_a_compressed_answer_is_refused_when_it_was_not_asked_for(encoding: str) -> None:
    # A thousandth of what it would become, twice over.
    bomb = gzip.compress(gzip.compress(b" " * 50_000_000))
    assert len(bomb) < LIMIT
    async with raw_pod(lambda: plain(bomb, f"content-encoding: {encoding}")) as pod:
        said = await refused(pod)
    assert f"is compressed ({encoding.lower()})" in said
    assert f"http://127.0.0.1:{pod.port}{PATH}" in said


async def test_an_answer_that_trickles_is_given_up_when_the_time_is_over() -> None:
    def trickle() -> list[bytes]:
        return [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n{\r\n"]

    async with raw_pod(trickle, then_wait=True) as pod:
        began = time.monotonic()
        assert "TimeoutError" in await refused(pod, timeout_seconds=0.3)
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 90_000, "nested too deeply"),
        (b"<html>no</html>", "is no JSON"),
        (b"\xff\xfe\xff", "is no JSON"),
        (b"1" * 50_000, "is no JSON"),
        (b"", "is no JSON"),
    ],
)
async def test_an_answer_is_refused_with_its_address_when_it_is_no_json(
    body: bytes, said: str
) -> None:
    async with raw_pod(lambda: plain(body)) as pod:
        message = await refused(pod)
    assert f"http://127.0.0.1:{pod.port}{PATH}" in message
    assert said in message
    assert len(message) < 500


async def test_the_token_goes_nowhere_else_when_a_head_sends_us_on() -> None:
    async with raw_pod(lambda: document({})) as other:
        target = f"http://127.0.0.1:{other.port}/"
        moved = f"HTTP/1.1 307 Go\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n".encode()
        async with raw_pod(lambda: [moved]) as pod:
            assert "status 307" in await refused(pod)
    assert [] == other.requests


async def test_a_head_is_asked_when_its_address_is_of_version_six() -> None:
    needs_ipv6()
    async with raw_pod(lambda: document({"applications": {}}), host="::1") as pod, api() as asked:
        found = await asked.fetch_applications(f"http://[::1]:{pod.port}", "t")
    assert {"applications": {}} == found
    assert f"host: [::1]:{pod.port}" in pod.requests[0].lower()
