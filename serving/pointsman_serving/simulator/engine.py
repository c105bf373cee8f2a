"""A fast engine: the iterations of ``engines.timing.EngineModel``, many at a time.

While nothing but decoding goes on, iterations differ only by their context, which grows by one
token for each sequence: k of them take the sum of an arithmetic series. So an engine stops only
where something happens, and those that decode are counted, not walked over. A test compares every
event with ``EngineModel``, from which it differs in one thing: the blocks of answers are never
shared. A trace says what an answer becomes only by the next prompt's own ids.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING

from pointsman_serving.engines.timing import EventKind
from pointsman_serving.simulator.cache import BlockCache
from pointsman_serving.simulator.estimate import prefill_seconds
from pointsman_serving.simulator.sequence import EngineEvent, FastSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman_serving.engines.timing import EngineProfile
    from pointsman_serving.simulator.request import SimRequest

_NEVER = math.inf


class FastEngine:
    """One engine. Give it requests, and step it at ``ends_at`` as long as that is finite.

    Args:
        follow_cache: keep a list of what becomes cached and what no longer is.
    """

    def __init__(self, profile: EngineProfile, *, follow_cache: bool = False) -> None:
        self.profile = profile
        self.slowness = 1.0
        """How many times longer iterations take than the profile says."""
        self._block_tokens = profile.block_tokens
        self._capacity = profile.kv_capacity_tokens // profile.block_tokens
        self.cache = BlockCache(self._capacity, changes=[] if follow_cache else None)
        self.waiting: deque[FastSequence] = deque()
        self.running: dict[FastSequence, None] = {}
        """By order of admission."""
        self.ends_at = _NEVER
        """When the planned step, or series of steps, ends."""
        self.pending_prefill_tokens = 0
        self.pending_prefill_seconds = 0.0
        self.preemptions = 0
        self.log: list[tuple[float, EventKind, str, int]] | None = None
        """Where tests read admissions and preemptions."""
        self._numbers = self._steps = self._decoding = 0
        self._context = 0
        """Known tokens of those that decode, as of ``_steps``."""
        self._to_generate = 0
        """Answer tokens still to come of all requests, as of ``_steps``."""
        self._crossings = [0] * profile.block_tokens
        """How many that decode need a new block at a step, by the step modulo the block."""
        self._finishes: list[tuple[int, int, FastSequence]] = []
        self._began_at = 0.0
        self._pace = 1.0
        self._planned = 0
        """Steps until ``ends_at``; more than one only while all decode."""
        self._work: list[tuple[FastSequence, int]] = []
        """The prefill of the planned step."""

    # What can be seen.

    def seen(self, now: float) -> tuple[int, int, int]:
        """Answer tokens to come, context of those that decode, and blocks held, at a time."""
        done = self._steps_done(now) if self._planned > 1 else 0
        held = self._capacity - self.cache.free
        if done:
            held += self._crossings_between(self._steps + 1, self._steps + done)
        tokens = self._decoding * done
        return self._to_generate - tokens, self._context + tokens, held

    def generated(self, sequence: FastSequence, now: float) -> int:
        """Tokens of a sequence's answer so far."""
        if not sequence.finish_step:
            return sequence.generated
        done = self._steps_done(now) if self._planned > 1 else 0
        return sequence.generated + self._steps + done - sequence.generated_at_step

    # What can be done.

    def add(self, request: SimRequest, output_tokens: int, now: float) -> None:
        """Queue a request; what is too long for the cache can never be served.

        Raises:
            ValueError: its tokens exceed the cache.
        """
        total = request.prompt_tokens + output_tokens
        if total > self._capacity * self._block_tokens:
            most = self._capacity * self._block_tokens
            raise ValueError(
                f"request {request.request_id!r} needs {total} tokens of cache and the engine has "
                f"{most}: shorten it or raise kv_capacity_tokens"
            )
        sequence = FastSequence(request, output_tokens, self._block_tokens)
        most = (request.prompt_tokens - 1) // self._block_tokens
        hits = self.cache.match(sequence.blocks, most) if self.profile.prefix_caching else 0
        self._set_pending(sequence, request.prompt_tokens, hits * self._block_tokens)
        self._to_generate += output_tokens
        blocked = bool(self.waiting)
        self.waiting.append(sequence)
        if self.ends_at == _NEVER:
            self._plan(now)
        elif not blocked:
            self._cut(now)

    def withdraw(self, request: SimRequest, now: float) -> bool:
        """Take a request out of the queue; False where it does not wait (any more)."""
        sequence = next((each for each in self.waiting if each.request is request), None)
        if sequence is None:
            return False
        was_next = sequence is self.waiting[0]
        self.waiting.remove(sequence)
        self._set_pending(sequence, 0, 0)
        self._to_generate -= sequence.output_tokens - sequence.generated
        if was_next:
            self._cut(now)
        return True

    def slow_down(self, slowness: float, now: float) -> None:
        """Let iterations take so many times longer, from the next one on."""
        self._cut(now)
        self.slowness = slowness

    def step(self) -> list[EngineEvent]:
        """Bring what was planned to its end, at ``ends_at``, and plan what follows."""
        events: list[EngineEvent] = []
        now = self.ends_at
        steps = self._planned
        if steps > 1:
            self.cache.take(self._crossings_between(self._steps + 1, self._steps + steps - 1))
        self._steps += steps
        self._context += steps * self._decoding
        self._to_generate -= steps * self._decoding
        finishes = self._finishes
        while finishes and finishes[0][0] <= self._steps:
            finish_step, _, sequence = heapq.heappop(finishes)
            if sequence.finish_step == finish_step:
                self._end_decode(sequence)
                events.append(EngineEvent(EventKind.FINISHED, sequence))
        if self._work:
            self._end_prefill(events)
        self._plan(now)
        return events

    # Planning.

    def _plan(self, now: float) -> None:
        profile = self.profile
        cache = self.cache
        crossings = self._crossings[self._steps % self._block_tokens]
        preempted = False
        if crossings > cache.free:
            preempted = self._make_room(now)
        elif crossings:
            cache.take(crossings)
        work = self._work = []
        budget = profile.max_batched_tokens - self._decoding
        if len(self.running) > self._decoding:
            # One prompt at most is part-computed: the one admitted last.
            budget -= self._add_work(next(reversed(self.running)), budget)
        waiting = self.waiting
        while waiting and budget > 0 and not preempted:
            if len(self.running) >= profile.max_sequences or not self._admit(now):
                break
            budget -= self._add_work(next(reversed(self.running)), budget)
        self._began_at = now
        self._pace = self.slowness
        if work:
            self._planned = 1
            self.ends_at = now + self._pace * self._work_seconds()
        elif self._decoding:
            # After a preemption nobody was let in; in the next step somebody may be.
            self._planned = 1 if preempted else self._steps_until_change()
            self.ends_at = now + self._decode_seconds(self._planned)
        else:
            self._planned = 0
            self.ends_at = _NEVER

    def _admit(self, now: float) -> bool:
        sequence = self.waiting[0]
        block_tokens = self._block_tokens
        known = sequence.known
        matched: Sequence[int] = ()
        if self.profile.prefix_caching:
            hits = self.cache.match(sequence.blocks, (known - 1) // block_tokens)
            matched = sequence.blocks[:hits]
        if not self.cache.share(matched, -(-known // block_tokens) - len(matched)):
            return False
        self.waiting.popleft()
        self._numbers = sequence.number = self._numbers + 1
        sequence.shared = list(matched)
        sequence.published = len(matched)
        sequence.computed = len(matched) * block_tokens
        if not sequence.generated:
            sequence.cached_tokens = sequence.computed
        self._set_pending(sequence, known, sequence.computed)
        self.running[sequence] = None
        self._note(now, EventKind.ADMITTED, sequence)
        return True

    def _add_work(self, sequence: FastSequence, budget: int) -> int:
        count = min(sequence.known - sequence.computed, budget)
        self._work.append((sequence, count))
        if self.profile.prefix_caching:
            blocks = sequence.blocks
            full = min((sequence.computed + count) // self._block_tokens, len(blocks))
            if full > sequence.published:
                cache = self.cache
                for block in blocks[sequence.published : full]:
                    if cache.publish(block):
                        sequence.shared.append(block)
                sequence.published = full
        return count

    def _work_seconds(self) -> float:
        prefill_tokens = 0
        decoding = self._decoding
        context = self._context
        pairs = 0.0
        for sequence, count in self._work:
            start = sequence.computed
            if sequence.generated and count == 1:
                decoding += 1
                context += start + 1
            else:
                prefill_tokens += count
                pairs += count * (start + (count + 1) / 2)
        return self.profile.iteration_duration_seconds(
            prefill_tokens=prefill_tokens,
            attention_pairs=pairs,
            decode_sequences=decoding,
            decode_context_tokens=context,
        )

    def _steps_until_change(self) -> int:
        """Steps of pure decoding to the next end, or before one that finds no free block."""
        finishes = self._finishes
        while finishes[0][2].finish_step != finishes[0][0]:
            heapq.heappop(finishes)
        steps = finishes[0][0] - self._steps
        free = self.cache.free
        if self._crossings_between(self._steps + 1, self._steps + steps - 1) <= free:
            return steps
        crossings = self._crossings
        for ahead in range(1, steps):
            free -= crossings[(self._steps + ahead) % self._block_tokens]
            if free < 0:
                return ahead
        return steps

    def _crossings_between(self, first: int, last: int) -> int:
        """Blocks that those who decode take at the steps from first to last."""
        count = last - first + 1
        if count <= 0:
            return 0
        turns, rest = divmod(count, self._block_tokens)
        crossings = self._crossings
        total = turns * self._decoding
        if rest:
            start = first % self._block_tokens
            total += sum(crossings[start : start + rest])
            beyond = start + rest - self._block_tokens
            if beyond > 0:
                total += sum(crossings[:beyond])
        return total

    def _make_room(self, now: float) -> bool:
        """Give blocks to those that decode, oldest first, by putting back the youngest."""
        preempted = False
        for sequence in list(self.running):
            if sequence not in self.running:
                break
            if not sequence.finish_step:
                continue
            known = sequence.known + self._steps - sequence.generated_at_step
            if (known - 1) % self._block_tokens:
                continue
            while not self.cache.free:
                youngest = next(reversed(self.running))
                self._preempt(youngest, now)
                preempted = True
                if youngest is sequence:
                    return True
            self.cache.take(1)
        return preempted

    def _preempt(self, sequence: FastSequence, now: float) -> None:
        del self.running[sequence]
        blocks = -(-sequence.known // self._block_tokens)
        if sequence.finish_step:
            blocks = self._leave_decode(sequence)
            sequence.finish_step = 0
        self.cache.release(sequence.shared, blocks - len(sequence.shared))
        sequence.shared = []
        sequence.computed = 0
        sequence.published = 0
        self._set_pending(sequence, sequence.known, 0)
        self.waiting.appendleft(sequence)
        self.preemptions += 1
        self._note(now, EventKind.PREEMPTED, sequence)

    def _note(self, now: float, kind: EventKind, sequence: FastSequence) -> None:
        if self.log is not None:
            self.log.append((now, kind, sequence.request.request_id, sequence.computed))

    # Ends.

    def _end_prefill(self, events: list[EngineEvent]) -> None:
        for sequence, count in self._work:
            sequence.computed += count
            if sequence.computed < sequence.known:
                self._set_pending(sequence, sequence.known, sequence.computed)
                continue
            self._set_pending(sequence, 0, 0)
            sequence.generated += 1
            sequence.known += 1
            self._to_generate -= 1
            if sequence.generated == 1:
                events.append(EngineEvent(EventKind.FIRST_TOKEN, sequence))
            if sequence.generated == sequence.output_tokens:
                del self.running[sequence]
                blocks = -(-sequence.computed // self._block_tokens)
                self.cache.release(sequence.shared, blocks - len(sequence.shared))
                events.append(EngineEvent(EventKind.FINISHED, sequence))
            else:
                self._begin_decode(sequence)

    def _begin_decode(self, sequence: FastSequence) -> None:
        steps = self._steps
        sequence.generated_at_step = steps
        sequence.finish_step = steps + sequence.output_tokens - sequence.generated
        self._decoding += 1
        self._context += sequence.known
        self._crossings[(steps - sequence.known + 1) % self._block_tokens] += 1
        heapq.heappush(self._finishes, (sequence.finish_step, sequence.number, sequence))

    def _leave_decode(self, sequence: FastSequence) -> int:
        """Count a sequence out; returns how many blocks it holds."""
        index = (sequence.generated_at_step - sequence.known + 1) % self._block_tokens
        self._crossings[index] -= 1
        decoded = self._steps - sequence.generated_at_step
        sequence.generated += decoded
        sequence.known += decoded
        sequence.generated_at_step = self._steps
        self._decoding -= 1
        self._context -= sequence.known
        return -(-(sequence.known - 1) // self._block_tokens)

    def _end_decode(self, sequence: FastSequence) -> None:
        blocks = self._leave_decode(sequence)
        del self.running[sequence]
        self.cache.release(sequence.shared, blocks - len(sequence.shared))

    def _set_pending(self, sequence: FastSequence, tokens: int, computed: int) -> None:
        """Count what is left of a prompt: its tokens but those computed or cached."""
        fresh = tokens - computed
        seconds = prefill_seconds(self.profile, tokens, computed)
        self.pending_prefill_tokens += fresh - sequence.pending_tokens
        self.pending_prefill_seconds += seconds - sequence.pending_seconds
        sequence.pending_tokens = fresh
        sequence.pending_seconds = seconds
        if not self.pending_prefill_tokens:
            self.pending_prefill_seconds = 0.0

    # Time.

    def _decode_seconds(self, steps: int) -> float:
        profile = self.profile
        context = steps * self._context + self._decoding * (steps * (steps - 1) // 2)
        fixed = profile.iteration_seconds + profile.decode_sequence_seconds * self._decoding
        return self._pace * (steps * fixed + profile.decode_context_token_seconds * context)

    def _steps_done(self, now: float) -> int:
        """How many steps of a planned series are over: quadratic k² + linear k = elapsed."""
        elapsed = max(0.0, (now - self._began_at) / self._pace)
        profile = self.profile
        context_seconds = profile.decode_context_token_seconds
        quadratic = context_seconds * self._decoding / 2
        linear = (
            profile.iteration_seconds
            + profile.decode_sequence_seconds * self._decoding
            + context_seconds * (self._context - self._decoding / 2)
        )
        steps = 2 * elapsed / (linear + math.sqrt(linear * linear + 4 * quadratic * elapsed))
        return min(int(steps), self._planned - 1)

    def _cut(self, now: float) -> None:
        """End a planned series with the step that is under way: something has changed."""
        if self._planned > 1:
            self._planned = self._steps_done(now) + 1
            self.ends_at = self._began_at + self._decode_seconds(self._planned)
