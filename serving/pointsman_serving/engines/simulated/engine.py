"""Runs an engine's timing model against the clock and hands each request its tokens."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pointsman_serving.engines.engine import EngineFailedError
from pointsman_serving.engines.timing import EngineModel, EventKind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from pointsman_serving.engines.simulated.metrics import EngineMetrics
    from pointsman_serving.engines.timing import EngineRequest, StepEvent

# A loop that was held up this long catches up; what is lost beyond stays lost.
_CATCH_UP_SECONDS = 0.05


class TokenEvent(NamedTuple):
    """One generated token."""

    position: int
    """Place in the answer, from 0."""
    cached_tokens: int
    """Prompt tokens that were found in the prefix cache."""
    last: bool


@dataclass(slots=True, kw_only=True, eq=False)
class _Ticket:
    """A request that somebody waits for."""

    request: EngineRequest
    arrived: float
    finish_reason: str
    events: asyncio.Queue[TokenEvent | None] = field(default_factory=asyncio.Queue)
    cached_tokens: int | None = None
    generated: int = 0
    last_token_at: float = 0.0


class SimulatedEngine:
    """Continuous batching in real time (times ``speed``), without a computed number.

    The loop runs while there is work, so that no start-up or shutdown hook is needed: an
    application inside Ray Serve gets no lifespan events.
    """

    def __init__(
        self,
        model: EngineModel,
        metrics: EngineMetrics,
        *,
        speed: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._speed = speed
        self._now = now
        self._sleep = sleep
        self._tickets: dict[str, _Ticket] = {}
        self._loop: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._busy_seconds = 0.0

    @property
    def busy_seconds(self) -> float:
        """Model time that all iterations took so far."""
        return self._busy_seconds

    @property
    def alive(self) -> bool:
        """False once the loop has failed."""
        return self._failure is None

    @property
    def open_requests(self) -> int:
        """Requests that somebody waits for."""
        return len(self._tickets)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._loop is None

    async def generate(
        self, request: EngineRequest, *, finish_reason: str
    ) -> AsyncGenerator[TokenEvent, None]:
        """Yield the tokens of a request as they come; leaving early aborts it.

        Args:
            request: what to do; its id must not be in use.
            finish_reason: ``stop`` or ``length``, for the count of finished requests.

        Raises:
            ValueError: the engine can never run this request.
            EngineFailedError: the engine has failed, before or meanwhile.
        """
        if not self.alive:
            raise EngineFailedError("the Simulated engine has failed: restart the replica")
        request_id = request.request_id
        self._model.add(request)
        ticket = _Ticket(request=request, arrived=self._now(), finish_reason=finish_reason)
        self._tickets[request_id] = ticket
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(), name="simulated-engine")
        done = False
        try:
            while not done:
                event = await ticket.events.get()
                if event is None:
                    raise EngineFailedError("the Simulated engine failed: restart the replica")
                done = event.last
                yield event
        finally:
            if self._tickets.pop(request_id, None) is not None:
                self._model.abort(request_id)
                self._metrics.ended("abort")

    async def _run(self) -> None:
        due = self._now()
        try:
            while self._model.running_count or self._model.waiting_count:
                result = self._model.step()
                self._metrics.stepped()
                self._busy_seconds += result.duration_seconds
                due = max(due, self._now() - _CATCH_UP_SECONDS)
                for event in result.events:
                    if event.kind is EventKind.ADMITTED:
                        self._admitted(event)
                due += result.duration_seconds / self._speed
                await self._sleep(max(0.0, due - self._now()))
                for event in result.events:
                    self._deliver(event)
        except Exception as failure:
            self._failure = failure
            for ticket in self._tickets.values():
                ticket.events.put_nowait(None)
            raise
        finally:
            self._loop = None

    def _admitted(self, event: StepEvent) -> None:
        ticket = self._tickets.get(event.request_id)
        if ticket is None or ticket.cached_tokens is not None:
            return  # gone, or admitted again after a preemption
        ticket.cached_tokens = event.cached_tokens
        self._metrics.queue_time.observe(self._now() - ticket.arrived)

    def _deliver(self, event: StepEvent) -> None:
        ticket = self._tickets.get(event.request_id)
        if ticket is None or event.kind not in (EventKind.FIRST_TOKEN, EventKind.TOKEN):
            return
        now = self._now()
        metrics = self._metrics
        if event.kind is EventKind.FIRST_TOKEN:
            metrics.time_to_first_token.observe(now - ticket.arrived)
            metrics.prompt_tokens.inc(ticket.request.prompt_tokens)
        else:
            metrics.inter_token_latency.observe(now - ticket.last_token_at)
        metrics.generation_tokens.inc()
        ticket.last_token_at = now
        position = ticket.generated
        ticket.generated += 1
        last = ticket.generated == ticket.request.output_tokens
        if last:
            del self._tickets[event.request_id]
            metrics.e2e_latency.observe(now - ticket.arrived)
            metrics.ended(ticket.finish_reason)
        ticket.events.put_nowait(TokenEvent(position, ticket.cached_tokens or 0, last))
