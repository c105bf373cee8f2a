"""What is under way on one replica: exact for our own requests, reported for the others'.

Own requests count from the moment they are sent. What a replica reports about itself can only
add to that, and fades within seconds: a late or missing reading never makes a replica look
idle. (Routers that trust the last snapshot lose half of their goodput when it is a second old.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman_serving.routing.ticket import TicketPhase

if TYPE_CHECKING:
    from pointsman_serving.routing.ticket import Ticket
    from pointsman_serving.routing.types import LoadReport

REPORT_FADES_SECONDS: Final = 4.0
_BUSY_CACHE_USAGE: Final = 0.9
_MOST_REPORTED_REQUESTS: Final = 10_000.0
_HEAD_SHARE: Final = 0.9


def dispatch_credit(sequence_slots: int) -> int:
    """How many requests a replica may hold beyond its slots, so that a freed one is not idle."""
    return max(1, sequence_slots // 16)


def _requests(stated: float | None) -> float:
    """A count that can be reckoned with, whatever the replica wrote."""
    if stated is None or not stated > 0.0:
        return 0.0
    return min(stated, _MOST_REPORTED_REQUESTS)


class ReplicaLoad:
    """Requests, prefill tokens and batch of one replica."""

    __slots__ = (
        "_batch_at",
        "_batch_seconds",
        "_dispatch_times",
        "_drained_since",
        "_pending",
        "_reported_at",
        "_reported_running",
        "_reported_waiting",
        "decoding",
        "heard_at",
        "in_flight",
        "pending_tokens",
        "reported",
        "streaming",
    )

    def __init__(self) -> None:
        self.in_flight = 0
        self.streaming = 0
        """Streams past their first token."""
        self.heard_at = 0.0
        """When a token of a stream came last; 0: none has come but first ones."""
        self.decoding = 0
        """Requests past their first token; those that do not stream, when it was due."""
        self.pending_tokens = 0.0
        """Uncached prompt tokens of the requests before their first token."""
        self._pending: dict[Ticket, None] = {}
        self._drained_since = 0.0
        self._dispatch_times = 0.0
        self._batch_at = 0.0
        self._batch_seconds = 0.0
        self.reported = False
        """Whether requests that are not ours were reported, however long ago."""
        self._reported_at = 0.0
        self._reported_running = 0.0
        self._reported_waiting = 0.0

    def dispatch(self, ticket: Ticket, *, now: float) -> None:
        """Count a request that is being sent."""
        self._settle(now)
        self._advance(now)
        if not self._pending:
            self._drained_since = now
        self._pending[ticket] = None
        self.pending_tokens += ticket.uncached_tokens
        self.in_flight += 1
        self._dispatch_times += now

    def first_token(self, ticket: Ticket, *, now: float) -> None:
        """Move a request from prefill to decode."""
        self._settle(now)
        self._start_decode(ticket, now)

    def finish(self, ticket: Ticket, *, now: float) -> None:
        """Forget a request."""
        self._settle(now)
        self._advance(now)
        if ticket in self._pending:
            self._leave_prefill(ticket, now)
        else:
            self.decoding -= 1
            self.streaming -= ticket.heard
            ticket.heard = False
        self.in_flight -= 1
        self._dispatch_times -= ticket.dispatched_at
        if not self.in_flight:
            self._dispatch_times = 0.0

    def report(self, report: LoadReport, *, now: float) -> None:
        """Take what the replica said of itself; only what exceeds our own requests counts."""
        waiting = _requests(report.waiting_requests)
        running = _requests(report.running_requests)
        others = waiting + running - self.in_flight
        if report.kv_cache_usage is not None and report.kv_cache_usage > _BUSY_CACHE_USAGE:
            # A full KV cache makes sequences wait or start again even where slots are free.
            waiting += 1.0
            others = max(others, 0.0) + 1.0
        left_running, left_waiting = self.others(now)
        others = max(others, left_running + left_waiting, 0.0)
        self._reported_waiting = min(max(waiting, left_waiting), others)
        self._reported_running = others - self._reported_waiting
        self._reported_at = now
        self.reported = others > 0.0

    def forget_reports(self) -> None:
        """Forget what a process that is gone has reported."""
        self._reported_running = self._reported_waiting = 0.0
        self.reported = False

    def others(self, now: float) -> tuple[float, float]:
        """Running and waiting requests that are not ours, as last reported and faded since."""
        if not self.reported:
            return 0.0, 0.0
        share = 1.0 - (now - self._reported_at) / REPORT_FADES_SECONDS
        if share <= 0.0:
            return 0.0, 0.0
        share = min(share, 1.0)
        return self._reported_running * share, self._reported_waiting * share

    def pending_ahead(self, now: float, seconds_per_token: float) -> float:
        """Prefill tokens that a request sent now would wait for.

        The oldest prompt is taken as being computed since the last first token, but never as
        all done before its own first token was seen.
        """
        ahead = self.pending_tokens
        if ahead <= 0.0 or seconds_per_token <= 0.0:
            return max(ahead, 0.0)
        drained = max(0.0, now - self._drained_since) / seconds_per_token
        for ticket in self._pending:
            tokens = ticket.uncached_tokens
            if ticket.request.stream:
                return max(0.0, ahead - min(drained, _HEAD_SHARE * tokens))
            if drained <= tokens:
                return max(0.0, ahead - drained)
            ahead -= tokens
            drained -= tokens
        return max(0.0, ahead)

    def paused(self, ticket: Ticket, paused: bool, *, now: float) -> None:
        """Leave a stream out of those that are heard, or take it in again."""
        if ticket.phase is TicketPhase.DECODE and ticket.request.stream and ticket.heard is paused:
            ticket.heard = not paused
            self.streaming += -1 if paused else 1
            self.heard_at = now if self.heard_at else 0.0

    def silent_seconds(self, now: float) -> float:
        """For how long none of its streams has had a token; 0 where there is none."""
        return now - self.heard_at if self.streaming and self.heard_at else 0.0

    def mean_age(self, now: float) -> float:
        """Seconds since our requests there were sent, on average: how long they may yet last."""
        if not self.in_flight:
            return 0.0
        return max(0.0, now - self._dispatch_times / self.in_flight)

    def batch_seconds(self, now: float) -> float:
        """Integral of the number of decoding requests over time."""
        return self._batch_seconds + self.decoding * max(0.0, now - self._batch_at)

    def _start_decode(self, ticket: Ticket, now: float) -> None:
        if ticket not in self._pending:
            return
        self._advance(now)
        self._leave_prefill(ticket, now)
        self.decoding += 1
        if ticket.request.stream:
            ticket.heard = True
            self.streaming += 1
            if self.heard_at:
                self.heard_at = now

    def _leave_prefill(self, ticket: Ticket, now: float) -> None:
        del self._pending[ticket]
        self.pending_tokens -= ticket.uncached_tokens
        self._drained_since = now
        if not self._pending:
            self.pending_tokens = 0.0

    def _settle(self, now: float) -> None:
        """Requests that do not stream begin to decode when their first token was due."""
        while self._pending:
            ticket = next(iter(self._pending))
            due = ticket.dispatched_at + ticket.predicted_ttft_seconds
            if ticket.request.stream or due > now:
                return
            self._start_decode(ticket, max(due, self._batch_at))

    def _advance(self, now: float) -> None:
        if now > self._batch_at:
            self._batch_seconds += self.decoding * (now - self._batch_at)
            self._batch_at = now
