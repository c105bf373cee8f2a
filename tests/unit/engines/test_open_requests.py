"""What replicas tell of their open requests, and to whom."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pointsman_serving.engines.counted_requests import CountedRequests
from pointsman_serving.engines.open_requests import (
    OpenRequests,
    busy_processes,
    open_requests_folder,
)
from pointsman_serving.engines.process_start import process_start


def test_process_is_busy_while_any_request_is_open(tmp_path: Path) -> None:
    requests = OpenRequests(tmp_path / "open")
    seen = [busy_processes(tmp_path / "open")]
    for change in (requests.began, requests.began, requests.ended, requests.ended, requests.began):
        change()
        seen.append(busy_processes(tmp_path / "open"))
    requests.close()
    me = [os.getpid()]
    assert [[], me, me, me, [], me] == seen
    assert ([], []) == (busy_processes(tmp_path / "open"), [*(tmp_path / "open").iterdir()])


def test_file_is_written_only_when_the_first_begins_and_the_last_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    pwrite = os.pwrite

    def counting(file: int, data: bytes, offset: int) -> int:
        written.append(data)
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", counting)
    requests = OpenRequests(tmp_path)
    for _ in range(100):
        requests.began()
    for _ in range(100):
        requests.ended()
    requests.close()
    assert [b"1", b"0"] == written


def test_killed_replica_is_not_busy_and_its_file_goes_when_the_next_one_starts(
    tmp_path: Path,
) -> None:
    program = (
        "import sys, pathlib; from pointsman_serving.engines.open_requests import OpenRequests; "
        "requests = OpenRequests(pathlib.Path(sys.argv[1])); requests.began(); "
        "print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert b"open\n" == child.stdout.readline()
    assert [child.pid] == busy_processes(tmp_path)
    child.kill()
    child.communicate()
    assert [] == busy_processes(tmp_path)
    assert 1 == len([*tmp_path.iterdir()])
    requests = OpenRequests(tmp_path)
    requests.began()
    assert [f"{os.getpid()}-{process_start(os.getpid())}"] == [f.name for f in tmp_path.iterdir()]
    requests.close()


def test_file_of_an_earlier_process_is_nobodys_when_its_id_was_given_again(
    tmp_path: Path,
) -> None:
    (tmp_path / f"{os.getpid()}-1").write_bytes(b"1")
    (tmp_path / "notes.txt").write_bytes(b"1")
    assert [] == busy_processes(tmp_path)


def test_requests_go_on_when_the_folder_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    requests = OpenRequests(tmp_path / "file" / "open")
    for _ in range(3):
        requests.began()
        requests.ended()
    (warning,) = caplog.records
    assert "POINTSMAN_RUN_DIR" in warning.getMessage()


def test_folder_is_below_the_run_folder_when_that_is_set() -> None:
    assert Path("/run/here/open") == open_requests_folder({"POINTSMAN_RUN_DIR": "/run/here"})
    assert Path("/tmp/pointsman/open") == open_requests_folder({})


async def test_request_is_open_until_its_application_is_done_and_a_probe_never_is(
    tmp_path: Path,
) -> None:
    go_on, fail = asyncio.Event(), asyncio.Event()

    async def engine(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await go_on.wait()
        if fail.is_set():
            raise RuntimeError("the engine failed")

    requests = OpenRequests(tmp_path)
    app = CountedRequests(engine, requests)

    def begin(path: str) -> asyncio.Task[None]:
        scope = {"type": "http", "path": path, "root_path": "/pool", "headers": []}
        return asyncio.ensure_future(app(scope, None, None))  # type: ignore[arg-type]

    probes = [begin("/pool/health"), begin("/pool/metrics"), begin("/pool/-/healthz")]
    await asyncio.sleep(0)
    assert 0 == requests.count
    streams = [begin("/pool/v1/chat/completions") for _ in range(3)]
    await asyncio.sleep(0)
    assert 3 == requests.count
    streams[0].cancel()
    await asyncio.gather(*streams[:1], return_exceptions=True)
    assert 2 == requests.count
    fail.set()
    go_on.set()
    await asyncio.gather(*streams, *probes, return_exceptions=True)
    assert (0, []) == (requests.count, busy_processes(tmp_path))
    requests.close()
