"""Who of those that wait goes when there is room, and what those are told who cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from pointsman_api.route_table import Rule
from pointsman_serving.gateway import openai
from pointsman_serving.gateway.admission import Admission, RuleKey
from pointsman_serving.gateway.openai import ApiError
from pointsman_serving.gateway.phase import Phase
from pointsman_serving.routing.scheduler import Scheduler
from pointsman_serving.routing.types import Decision, Outcome, RouteRequest

log = structlog.get_logger(__name__)

# How many waiters of a rule may be passed over for those behind them: each costs a decision.
_PASSED_OVER = 64

_NO_LIMIT = 1 << 62


class Routed(Protocol):
    """A routed request, as what it shares with the others sees it. ``relay.Relay`` is one."""

    request: RouteRequest
    rule_key: RuleKey
    phase: Phase

    @property
    def pools(self) -> list[str]:
        """The pools that its rule may choose."""

    @property
    def pool(self) -> str:
        """The pool that it was sent to last; empty before that."""

    def decide(self, now: float) -> Decision:
        """Ask the scheduler what to do with it now."""

    def take(self, decision: Decision, now: float) -> None:
        """Act on a decision."""

    def stop(self, error: ApiError) -> None:
        """End it with ``error``."""


class Dispatcher:
    """Lets those go who wait.

    Args:
        admission: who waits.
        retry_after_seconds: the least that a refused client is told to wait.
        clock: seconds; monotonic.
    """

    def __init__(
        self,
        admission: Admission[Routed],
        scheduler: Scheduler,
        *,
        retry_after_seconds: float,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._admission = admission
        self._scheduler = scheduler
        self._retry_after_seconds = retry_after_seconds
        self._loop = loop
        self._clock = clock
        self._wake_due = False

    def join(self, waiter: Routed, rule: Rule, *, now: float, again: bool) -> ApiError | None:
        """Let a request wait; the answer to it where its rule's queue has no room.

        Args:
            again: it was let through before; it is not turned away for being many, and waits
                in front.
        """
        key = waiter.rule_key
        limit = _NO_LIMIT if again else rule.overload.max_queued_requests
        if self._admission.join(key, waiter, limit=limit, now=now, front=again):
            return None
        wait = self._wait_estimate(key, rule)
        return openai.queue_full(rule.overload.max_queued_requests, wait)

    def wake_soon(self) -> None:
        """Look at the queues in the next turn of the loop: there may be room."""
        if not self._wake_due and len(self._admission):
            self._wake_due = True
            self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._wake_due = False
        for rule in self._admission.rules():
            self._drain(rule)

    def may_go_first(self, newcomer: Routed) -> bool:
        """Whether a newcomer may be sent though others of its rule wait.

        Those who could use the room go before it. Where more wait than are looked at, it waits
        behind them.
        """
        decision = newcomer.decide(self._clock())
        if decision.outcome is Outcome.WAIT:
            return False
        if decision.outcome is Outcome.CHOSEN:
            self._drain(newcomer.rule_key)
        return self._admission.depth(newcomer.rule_key) <= _PASSED_OVER

    def _drain(self, rule: RuleKey) -> None:
        """Let go who can, in the order of arrival.

        Who waits for a pool that is full (by its weights, its conversation or what it tried
        already) must not keep those behind it from another pool.
        """
        passed_over = 0
        while passed_over < _PASSED_OVER:
            waiter = next(iter(self._admission.first(rule, passed_over + 1)[passed_over:]), None)
            if waiter is None:
                return
            now = self._clock()
            decision = waiter.decide(now)
            if decision.outcome is Outcome.WAIT:
                if not self._scheduler.has_room(waiter.pools, now=now):
                    return
                passed_over += 1
                continue
            self._admission.admit(rule, waiter, now=now)
            try:
                waiter.take(decision, now)
            except Exception:
                # One request must not keep those behind it waiting.
                log.exception("request failed", request_id=waiter.request.request_id)
                waiter.stop(openai.internal_error())

    def queue_timeout(self, key: RuleKey, rule: Rule) -> ApiError:
        """The answer to a request that has waited for as long as the rule allows."""
        limit = rule.overload.max_queue_seconds
        return openai.queue_timeout(limit, self._wait_estimate(key, rule))

    def _wait_estimate(self, key: RuleKey, rule: Rule) -> float:
        return self._admission.wait_estimate_seconds(
            key,
            default=self._retry_after_seconds,
            most=max(rule.overload.max_queue_seconds, 1.0),
        )
