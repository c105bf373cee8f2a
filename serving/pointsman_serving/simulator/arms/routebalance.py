"""RouteBalance: model and instance chosen together, a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pointsman_serving.simulator.arm import (
    Action,
    Arm,
    Dispatch,
    Event,
    Failed,
    Finished,
    FirstToken,
    FleetView,
    InstanceView,
    Reject,
)

if TYPE_CHECKING:
    from pointsman_serving.simulator.arms.prediction import PoolFacts, Prediction, Predictor
    from pointsman_serving.simulator.request import SimRequest


class RouteBalance(Arm):
    """Greedy list scheduling: the longest request first, each to the best score.

    score = wq · quality + wc · (1 − cost / max cost) + wl · (1 − e2e / max e2e), over all living
    instances; equals: the shortest queue, then who was assigned least recently. With
    ``quality_norm`` "minmax" the qualities of a request are stretched to 0..1 first.

    e2e = own length · TPOT where the batch has a slot and nothing waits, else
    (pending decode / running + own length) · TPOT, with each model's nominal TPOT. The length that
    a request is sorted by and counts as pending with is the longest of its predicted ones. What
    pends of earlier requests is their predicted length less what the nominal TPOT has made of it.

    A batch is sent when it is full or its first request has waited for long enough; with
    ``adaptive_window`` both limits grow with the share of instances where something waits: below
    .3 it is 4 requests or 50 ms, below .7 16 or 100 ms, else 32 or 200 ms. The state is read once
    for each batch and then reckoned on; nothing is carried over to the next.

    Source: RouteBalance (arXiv 2606.17949) and its repository (AKafakA/route-balance).
    """

    name: ClassVar[str] = "routebalance"

    def __init__(
        self,
        *,
        predictor: Predictor,
        pools: Mapping[str, PoolFacts],
        seed: int = 0,
        quality_weight: float = 1 / 3,
        cost_weight: float = 1 / 3,
        latency_weight: float = 1 / 3,
        quality_norm: str = "raw",
        adaptive_window: bool = True,
        max_batch_size: int = 16,
        batch_timeout_seconds: float = 0.1,
        max_sequences: int = 256,
    ) -> None:
        if quality_norm not in ("raw", "minmax"):
            raise ValueError(f"quality_norm is {quality_norm!r}: give 'raw' or 'minmax'")
        self._predictor = predictor
        self._pools = pools
        self._weights = quality_weight, cost_weight, latency_weight
        self._stretch = quality_norm == "minmax"
        self._adaptive = adaptive_window
        self._batch_size = max_batch_size
        self._timeout_seconds = batch_timeout_seconds
        self._max_sequences = max_sequences
        self._batch: list[SimRequest] = []
        self._assignments = 0
        self._last_assigned: dict[int, int] = {}
        self._sent: dict[int, dict[str, _Sent]] = {}

    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        """Put the request into the batch, and send that where it is full."""
        self._batch.append(request)
        if len(self._batch) >= self._batch_size:
            return self._send(view, now)
        if self.wake_at is None:
            self.wake_at = now + self._timeout_seconds
        return ()

    def wake(self, view: FleetView, now: float) -> Sequence[Action]:
        """Send the batch."""
        return self._send(view, now)

    def event(self, event: Event, view: FleetView, now: float) -> Sequence[Action]:
        """Keep count of what pends."""
        if isinstance(event, FirstToken):
            sent = self._sent.get(event.instance, {}).get(event.request.request_id)
            if sent is not None:
                sent.first_token_at = now
        elif isinstance(event, Finished | Failed):
            self._sent.get(event.instance, {}).pop(event.request.request_id, None)
        return ()

    def _send(self, view: FleetView, now: float) -> Sequence[Action]:
        batch, self._batch, self.wake_at = self._batch, [], None
        if not view.alive:
            return [Reject(request) for request in batch]
        states = [_State(each, self._pending(each, now)) for each in view.alive]
        if self._adaptive:
            self._adapt(states)
        forecasts = [(request, self._predictor.predict(request)) for request in batch]
        lengths = {
            request.request_id: max(each.output_tokens for each in forecast.values())
            for request, forecast in forecasts
        }
        forecasts.sort(key=lambda pair: -lengths[pair[0].request_id])
        actions: list[Action] = []
        for request, forecast in forecasts:
            state = self._best(request, forecast, states)
            length = lengths[request.request_id]
            state.waiting += 1
            state.pending_decode_tokens += length
            self._assignments += 1
            self._last_assigned[state.index] = self._assignments
            self._sent.setdefault(state.index, {})[request.request_id] = _Sent(length)
            actions.append(Dispatch(request, state.index))
        return actions

    def _adapt(self, states: Sequence[_State]) -> None:
        """Set the limits of the next batch."""
        busy = sum(state.waiting > 0 for state in states) / len(states)
        if busy < 0.3:
            self._batch_size, self._timeout_seconds = 4, 0.05
        elif busy < 0.7:
            self._batch_size, self._timeout_seconds = 16, 0.1
        else:
            self._batch_size, self._timeout_seconds = 32, 0.2

    def _pending(self, instance: InstanceView, now: float) -> float:
        tpot_seconds = self._pools[instance.pool].tpot_seconds
        pending = 0.0
        for sent in self._sent.get(instance.index, {}).values():
            done = 0.0
            if sent.first_token_at is not None:
                done = 1 + (now - sent.first_token_at) / tpot_seconds
            pending += max(0.0, sent.length - done)
        return pending

    def _best(
        self, request: SimRequest, forecast: Mapping[str, Prediction], states: Sequence[_State]
    ) -> _State:
        costs: list[float] = []
        latencies: list[float] = []
        qualities: list[float] = []
        for state in states:
            facts, predicted = self._pools[state.pool], forecast[state.pool]
            costs.append(facts.dollars(request.prompt_tokens, predicted.output_tokens))
            length = max(1.0, predicted.output_tokens)
            if state.running >= self._max_sequences or state.waiting:
                length += state.pending_decode_tokens / max(state.running, 1)
            latencies.append(length * facts.tpot_seconds)
            qualities.append(predicted.quality)
        if self._stretch:
            low, spread = min(qualities), max(qualities) - min(qualities) + 1e-8
            qualities = [(quality - low) / spread for quality in qualities]
        most_cost, most_latency = max(costs) or 1.0, max(latencies)
        quality_weight, cost_weight, latency_weight = self._weights
        ranks = [
            (
                -quality_weight * qualities[position]
                - cost_weight * (1 - costs[position] / most_cost)
                - latency_weight * (1 - latencies[position] / most_latency),
                state.running + state.waiting,
                self._last_assigned.get(state.index, 0),
                position,
            )
            for position, state in enumerate(states)
        ]
        return states[min(ranks)[3]]


class _Sent:
    """A request that was dispatched and is not finished."""

    __slots__ = ("first_token_at", "length")

    def __init__(self, length: float) -> None:
        self.length = length
        self.first_token_at: float | None = None


class _State:
    """What is known of an instance in one batch."""

    __slots__ = ("index", "pending_decode_tokens", "pool", "running", "waiting")

    def __init__(self, instance: InstanceView, pending_decode_tokens: float) -> None:
        self.index = instance.index
        self.pool = instance.pool
        self.running = instance.running
        self.waiting = instance.waiting
        self.pending_decode_tokens = pending_decode_tokens
