"""`pointsman up` as a user runs it, and requests to it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

READY_SECONDS = 420.0
STOP_SECONDS = 60.0
REQUEST_SECONDS = 180.0


@dataclass(frozen=True)
class Endpoint:
    """A running `pointsman up`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def readiness(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as reply:
                return dict(json.load(reply))
        except OSError:
            return {}

    def replica_counts(self) -> dict[str, int]:
        pools = self.readiness().get("pools", {})
        return {name: pool["replicas"] for name, pool in pools.items()}

    def printed_replicas(self, pool: str) -> dict[str, tuple[str, int]]:
        """Replica, address and process id, as the command's table shows them."""
        rows = re.findall(r"│ (\S+) +│ (\S+) +│ (\S+) +│ (\d+) +│", self.log.read_text())
        return {
            replica: (address, int(process))
            for name, replica, address, process in rows
            if name == pool
        }

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the gateway's samples of a metric that carry these labels."""
        return metric(f"{self.url}/metrics", name, **labels)


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels."""
    with urllib.request.urlopen(url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    total = 0.0
    for line in lines:
        sample, _, value = line.rpartition(" ")
        if re.match(rf"{re.escape(name)}($|{{)", sample) and all(w in sample for w in wanted):
            total += float(value)
    return total


@contextmanager
def running_up(
    manifests: Path, log: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[Endpoint]:
    """Start the command, wait until every replica is there, and end it with SIGINT."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pointsman_serving.cli.main"),
                *("up", str(manifests), f"--port={port}"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200", **(environment or {})},
        )
    endpoint = Endpoint(url=f"http://127.0.0.1:{port}", process=process, log=log)
    try:
        _wait_for_line(endpoint, "Ready")
        yield endpoint
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_line(endpoint: Endpoint, start: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        text = endpoint.log.read_text(errors="replace")
        if re.search(rf"^{start}", text, re.MULTILINE):
            return
        if endpoint.process.poll() is not None:
            raise RuntimeError(f"pointsman up ended with {endpoint.process.returncode}:\n{text}")
        time.sleep(0.3)
    raise RuntimeError(f"not ready after {READY_SECONDS:.0f} s:\n{text}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Reply:
    """What one request got."""

    status: int = 0
    replica: str = ""
    pool: str = ""
    text: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    """A stream's [DONE] came."""
    first_token_at: float | None = None
    ended_at: float = 0.0
    document: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    @property
    def error(self) -> dict[str, Any] | None:
        """The error object, of a refused request or of a stream that broke."""
        for event in self.events:
            if "error" in event:
                return dict(event["error"])
        found = self.document.get("error")
        return dict(found) if found else None

    @property
    def finished(self) -> bool:
        """A whole answer: a stream with a finish reason and [DONE], or a whole document."""
        reasons = [c.get("finish_reason") for e in self.events for c in e.get("choices", [])]
        return (self.done and any(reasons)) or bool(self.document.get("choices"))


def chat(model: str, *contents: str, **more: object) -> dict[str, object]:
    """A chat body at temperature 0; the contents alternate between user and assistant."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"model": model, "messages": messages, "temperature": 0, **more}


async def send(http: aiohttp.ClientSession, body: Mapping[str, object]) -> Reply:
    """Send a chat request and read all of its answer."""
    reply = Reply()
    try:
        async with http.post("v1/chat/completions", json=body) as answer:
            reply.status = answer.status
            reply.pool = answer.headers.get("x-pointsman-pool", "")
            reply.replica = answer.headers.get("x-pointsman-replica", "")
            if answer.content_type == "text/event-stream":
                await _read_events(answer, reply)
            else:
                reply.document = await answer.json(content_type=None)
                if reply.finished:
                    reply.text = reply.document["choices"][0]["message"]["content"]
    except (aiohttp.ClientError, TimeoutError) as error:
        reply.failure = repr(error)
    reply.ended_at = time.monotonic()
    return reply


async def _read_events(answer: aiohttp.ClientResponse, reply: Reply) -> None:
    async for line in answer.content:
        data = line.decode().strip()
        if not data.startswith("data: "):
            continue
        data = data.removeprefix("data: ")
        if data == "[DONE]":
            reply.done = True
            continue
        event = json.loads(data)
        reply.events.append(event)
        for choice in event.get("choices", ()):
            content = choice["delta"].get("content")
            if content:
                reply.first_token_at = reply.first_token_at or time.monotonic()
                reply.text += content


async def send_all(
    http: aiohttp.ClientSession, bodies: Sequence[Mapping[str, object]]
) -> list[Reply]:
    """Send them at once."""
    return list(await asyncio.gather(*(send(http, body) for body in bodies)))


def session(endpoint: Endpoint | str) -> aiohttp.ClientSession:
    """A client of an endpoint, or of an address, without a limit of connections."""
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    return aiohttp.ClientSession(
        url.rstrip("/") + "/",
        timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
        connector=aiohttp.TCPConnector(limit=0),
    )
