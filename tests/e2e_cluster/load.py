"""Requests through the gateway's Service while something happens to the pods."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import openai

if TYPE_CHECKING:
    from tests.cluster.node.cluster import NodeCluster
    from tests.cluster.node.existing import ExistingCluster

_STOP_SECONDS = 120.0


@dataclass(slots=True)
class Tally:
    """What came of the requests."""

    answered: int = 0
    streams: int = 0
    """That were whole."""
    failed: Counter[str] = field(default_factory=Counter)
    """Requests without any token, by what the client was told."""
    broken: Counter[str] = field(default_factory=Counter)
    """Streams that ended after their first token and before their last."""
    longest_gap_seconds: float = 0.0
    """Between two tokens of a stream."""
    replicas: Counter[str] = field(default_factory=Counter)
    """Who answered."""

    def __str__(self) -> str:
        return (
            f"{self.answered} answers and {self.streams} streams whole, "
            f"{sum(self.failed.values())} failed, {sum(self.broken.values())} streams broken, "
            f"longest gap {self.longest_gap_seconds:.1f} s"
        )


class Load:
    """Workers that ask one model again and again, and workers that hold streams.

    Args:
        url: the Service's address with ``/v1``.
        workers: how many ask for short answers, one after the other.
        streams: how many hold one stream after the other.
        stream_tokens: how long each stream is.
    """

    def __init__(
        self,
        cluster: NodeCluster | ExistingCluster,
        url: str,
        model: str,
        *,
        workers: int = 4,
        streams: int = 4,
        stream_tokens: int = 400,
    ) -> None:
        self.tally = Tally()
        self.open_streams = 0
        self._cluster = cluster
        self._url, self._model = url, model
        self._workers, self._streams = workers, streams
        self._stream_tokens = stream_tokens
        self._prompts = itertools.count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.until(lambda tally: tally.answered > 0 or not self._workers, "the first answer")
        self.until(lambda _: self.open_streams >= self._streams, "the streams to begin")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"requests have not ended after {_STOP_SECONDS:.0f} s: {self.tally}")

    def until(self, holds: Any, what: str, *, timeout_seconds: float = 60.0) -> None:
        """Wait until something holds of the tally so far."""
        deadline = time.monotonic() + timeout_seconds
        while not holds(self.tally):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} in {timeout_seconds:.0f} s: {self.tally}")
            time.sleep(0.05)

    def _run(self) -> None:
        with self._cluster.network():
            asyncio.run(self._ask_all())

    async def _ask_all(self) -> None:
        async with openai.AsyncOpenAI(
            base_url=self._url, api_key="load", max_retries=0, timeout=300.0
        ) as client:
            tasks = [self._short(client) for _ in range(self._workers)]
            tasks += [self._stream(client) for _ in range(self._streams)]
            await asyncio.gather(*tasks)

    async def _short(self, client: openai.AsyncOpenAI) -> None:
        while not self._stop.is_set():
            try:
                reply = await client.chat.completions.with_raw_response.create(
                    model=self._model, messages=self._messages(), max_tokens=8
                )
                self.tally.answered += 1
                self.tally.replicas[reply.headers.get("x-pointsman-replica", "")] += 1
            except openai.OpenAIError as error:
                self.tally.failed[_said(error)] += 1
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.02)

    async def _stream(self, client: openai.AsyncOpenAI) -> None:
        while not self._stop.is_set():
            tokens = 0
            try:
                stream = await client.chat.completions.create(
                    model=self._model,
                    messages=self._messages(),
                    max_tokens=self._stream_tokens,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                self.open_streams += 1
                last, finish = time.monotonic(), None
                async for chunk in stream:
                    now = time.monotonic()
                    self.tally.longest_gap_seconds = max(self.tally.longest_gap_seconds, now - last)
                    last = now
                    for choice in chunk.choices:
                        tokens += bool(choice.delta.content)
                        finish = choice.finish_reason or finish
                if finish == "length":
                    self.tally.streams += 1
                else:
                    self.tally.broken[f"it ended with finish_reason {finish}"] += 1
            except openai.OpenAIError as error:
                (self.tally.broken if tokens else self.tally.failed)[_said(error)] += 1
                await asyncio.sleep(0.2)
            except (OSError, RuntimeError) as error:
                self.tally.broken[repr(error)[:200]] += 1

    def _messages(self) -> list[Any]:
        return [{"role": "user", "content": f"Question {next(self._prompts)}: what is a train?"}]


def _said(error: openai.OpenAIError) -> str:
    status = getattr(error, "status_code", "")
    return f"{status} {str(error)[:200]}".strip()
