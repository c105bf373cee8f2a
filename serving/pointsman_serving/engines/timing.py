"""When a continuous-batching engine computes which token: pure, no I/O, no clock.

One :meth:`EngineModel.step` is one iteration of the engine. The caller owns time: the
Simulated engine sleeps for what a step says, a discrete-event simulator adds it up.

Source: vLLM's v1 scheduler (running sequences first, then waiting ones in their order, prefill
in chunks under one token budget, the youngest sequence preempted and recomputed when the cache
is full).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from pointsman_serving.engines.blocks import BlockLease, BlockPool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """What an engine can hold and how long its work takes.

    The defaults describe a 14B model on one H100. An iteration takes the sum of all terms.
    """

    iteration_seconds: float = 0.012
    """Fixed cost of an iteration, mostly reading the weights."""
    prefill_token_seconds: float = 50e-6
    """For each prompt token that is computed."""
    attention_pair_seconds: float = 2.5e-9
    """For each pair of a computed prompt token and a token that it attends to."""
    decode_sequence_seconds: float = 30e-6
    """For each sequence that decodes a token."""
    decode_context_token_seconds: float = 40e-9
    """For each token of context of each decoding sequence."""
    kv_capacity_tokens: int = 500_000
    """Tokens that the key-value cache holds; whole blocks are used."""
    block_tokens: int = 16
    """Tokens of one cache block, the grain of prefix sharing."""
    max_sequences: int = 256
    """Sequences that run at once; more wait."""
    max_batched_tokens: int = 8_192
    """Tokens that one iteration computes at most."""
    prefix_caching: bool = True
    """Whether blocks are shared between requests."""

    def __post_init__(self) -> None:
        """Refuse what no engine could be.

        Raises:
            ValueError: a negative time, or a size below its least.
        """
        for name in (
            "iteration_seconds",
            "prefill_token_seconds",
            "attention_pair_seconds",
            "decode_sequence_seconds",
            "decode_context_token_seconds",
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: give seconds, 0 or more")
        for name in ("block_tokens", "max_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a whole number from 1")
        if self.max_batched_tokens < self.max_sequences:
            raise ValueError(
                f"max_batched_tokens is {self.max_batched_tokens}: every one of the "
                f"{self.max_sequences} sequences needs one, give at least max_sequences"
            )
        if self.kv_capacity_tokens < self.block_tokens:
            raise ValueError(
                f"kv_capacity_tokens is {self.kv_capacity_tokens}: "
                f"give at least one block ({self.block_tokens} tokens)"
            )

    def iteration_duration_seconds(
        self,
        *,
        prefill_tokens: int,
        attention_pairs: float,
        decode_sequences: int,
        decode_context_tokens: int,
    ) -> float:
        """Seconds that an iteration with this work takes."""
        return (
            self.iteration_seconds
            + self.prefill_token_seconds * prefill_tokens
            + self.attention_pair_seconds * attention_pairs
            + self.decode_sequence_seconds * decode_sequences
            + self.decode_context_token_seconds * decode_context_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One request as the engine sees it."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    """How many will be generated; known from the start, because the text is."""
    block_hashes: tuple[int, ...] = ()
    """Hash of each full block of the prompt and then the output, each over its whole prefix.

    It may end early: blocks without a hash are never shared.
    """


class EventKind(StrEnum):
    """What happened to a request in a step."""

    ADMITTED = "Admitted"
    """It left the queue at the step's start; ``cached_tokens`` were not computed again."""
    FIRST_TOKEN = "FirstToken"
    TOKEN = "Token"
    FINISHED = "Finished"
    """Its last token came with this step; follows that token's own event."""
    PREEMPTED = "Preempted"
    """It gave its blocks back at the step's start and waits, first in the queue."""


class StepEvent(NamedTuple):
    """Something that happened to one request; all but admission and preemption at the end."""

    request_id: str
    kind: EventKind
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one iteration did."""

    duration_seconds: float
    events: tuple[StepEvent, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class _Sequence:
    """A request on its way."""

    request: EngineRequest
    lease: BlockLease
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    generated: int = 0
    published: int = 0
    """Full blocks already offered for sharing."""

    @property
    def known(self) -> int:
        """Tokens that exist: the prompt and what was generated."""
        return self.request.prompt_tokens + self.generated


class EngineModel:
    """An engine that computes nothing but time. Deterministic."""

    def __init__(self, profile: EngineProfile) -> None:
        self._profile = profile
        self._pool = BlockPool(profile.kv_capacity_tokens // profile.block_tokens)
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._by_id: dict[str, _Sequence] = {}
        self._prefix_queries_tokens = 0
        self._prefix_hits_tokens = 0
        self._preemptions = 0

    @property
    def profile(self) -> EngineProfile:
        """What was asked for."""
        return self._profile

    @property
    def running_count(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """Sequences in the queue, preempted ones among them."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the cache that sequences hold, 0 to 1; idle cached blocks count as free."""
        return self._pool.used / self._pool.capacity

    @property
    def cached_blocks(self) -> int:
        """Blocks that a new request could share."""
        return self._pool.cached

    @property
    def prefix_queries_tokens(self) -> int:
        """Prompt tokens that were looked up in the prefix cache."""
        return self._prefix_queries_tokens

    @property
    def prefix_hits_tokens(self) -> int:
        """Prompt tokens that were found there."""
        return self._prefix_hits_tokens

    @property
    def preemptions(self) -> int:
        """How often a sequence was put back."""
        return self._preemptions

    def add(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            ValueError: a duplicate id, an empty prompt or output, or more tokens than the cache
                could ever hold.
        """
        total = request.prompt_tokens + request.output_tokens
        capacity = self._pool.capacity * self._profile.block_tokens
        if request.request_id in self._by_id:
            raise ValueError(
                f"request {request.request_id!r} is in the engine already: "
                "give each request its own id"
            )
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError(
                f"request {request.request_id!r} has {request.prompt_tokens} prompt and "
                f"{request.output_tokens} output tokens: both must be at least 1"
            )
        if total > capacity:
            raise ValueError(
                f"request {request.request_id!r} needs {total} tokens of cache and the engine "
                f"has {capacity}: shorten it or raise kv_capacity_tokens"
            )
        sequence = _Sequence(request=request, lease=BlockLease())
        self._by_id[request.request_id] = sequence
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False where it is not here (any more)."""
        sequence = self._by_id.pop(request_id, None)
        if sequence is None:
            return False
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._pool.release(sequence.lease)
        return True

    def step(self) -> StepResult:
        """Run one iteration; an engine with nothing to do takes no time."""
        events: list[StepEvent] = []
        budget = self._profile.max_batched_tokens
        work: list[tuple[_Sequence, int]] = []
        preempted = False
        position = 0
        while position < len(self._running) and budget:
            sequence = self._running[position]
            count = min(sequence.known - sequence.computed, budget)
            preempted |= self._make_room(sequence, events)
            if position >= len(self._running) or self._running[position] is not sequence:
                break  # it was itself the youngest
            budget -= self._plan(sequence, count, work)
            position += 1
        while self._waiting and budget and not preempted:
            if len(self._running) >= self._profile.max_sequences or not self._admit(events):
                break
            sequence = self._running[-1]
            budget -= self._plan(sequence, min(sequence.known - sequence.computed, budget), work)
        if not work:
            return StepResult(duration_seconds=0.0, events=tuple(events))
        return self._compute(work, events)

    def _make_room(self, sequence: _Sequence, events: list[StepEvent]) -> bool:
        """Give a running sequence the block for its next token; says whether any was preempted."""
        needed = -(-sequence.known // self._profile.block_tokens) - sequence.lease.blocks
        preempted = False
        while needed > self._pool.free:
            youngest = self._running.pop()
            self._pool.release(youngest.lease)
            youngest.computed = 0
            youngest.published = 0
            self._waiting.appendleft(youngest)
            self._preemptions += 1
            events.append(StepEvent(youngest.request.request_id, EventKind.PREEMPTED))
            preempted = True
            if youngest is sequence:
                return True
        if needed > 0:
            self._pool.extend(sequence.lease, needed)
        return preempted

    def _admit(self, events: list[StepEvent]) -> bool:
        """Move the head of the queue into the batch if its tokens so far fit the cache."""
        sequence = self._waiting[0]
        block_tokens = self._profile.block_tokens
        matched: tuple[int, ...] = ()
        if self._profile.prefix_caching:
            # At least one token is computed: the next one is sampled from it.
            hashes = sequence.request.block_hashes[: (sequence.known - 1) // block_tokens]
            matched = hashes[: self._pool.match(hashes)]
        fresh = -(-sequence.known // block_tokens) - len(matched)
        if not self._pool.can_acquire(matched, fresh):
            return False
        self._waiting.popleft()
        sequence.lease = self._pool.acquire(matched, fresh)
        sequence.published = len(matched)
        sequence.computed = len(matched) * block_tokens
        self._running.append(sequence)
        if not sequence.generated:  # vLLM counts a preempted request once
            self._prefix_queries_tokens += sequence.request.prompt_tokens
            self._prefix_hits_tokens += sequence.computed
        events.append(StepEvent(sequence.request.request_id, EventKind.ADMITTED, sequence.computed))
        return True

    def _plan(self, sequence: _Sequence, count: int, work: list[tuple[_Sequence, int]]) -> int:
        """Put tokens of a sequence into the iteration and offer the blocks that they fill.

        The blocks are offered before they are computed: requests of one iteration share their
        common prefix, because a layer writes keys and values before it reads them.
        """
        work.append((sequence, count))
        if self._profile.prefix_caching:
            hashes = sequence.request.block_hashes
            full = min((sequence.computed + count) // self._profile.block_tokens, len(hashes))
            for index in range(sequence.published, full):
                self._pool.publish(sequence.lease, hashes[index])
            sequence.published = max(sequence.published, full)
        return count

    def _compute(self, work: list[tuple[_Sequence, int]], events: list[StepEvent]) -> StepResult:
        """Advance the planned sequences and say how long that took."""
        prefill_tokens = decode_sequences = decode_context = 0
        pairs = 0.0
        for sequence, count in work:
            start = sequence.computed
            sequence.computed += count
            if sequence.generated and count == 1:
                decode_sequences += 1
                decode_context += sequence.computed
            else:
                prefill_tokens += count
                pairs += count * (start + (count + 1) / 2)
            if sequence.computed == sequence.known:
                self._emit_token(sequence, events)
        duration = self._profile.iteration_duration_seconds(
            prefill_tokens=prefill_tokens,
            attention_pairs=pairs,
            decode_sequences=decode_sequences,
            decode_context_tokens=decode_context,
        )
        return StepResult(duration_seconds=duration, events=tuple(events))

    def _emit_token(self, sequence: _Sequence, events: list[StepEvent]) -> None:
        request_id = sequence.request.request_id
        sequence.generated += 1
        kind = EventKind.FIRST_TOKEN if sequence.generated == 1 else EventKind.TOKEN
        events.append(StepEvent(request_id, kind))
        if sequence.generated == sequence.request.output_tokens:
            events.append(StepEvent(request_id, EventKind.FINISHED))
            self._running.remove(sequence)
            del self._by_id[request_id]
            self._pool.release(sequence.lease)
