"""Continuous batching of one transformers model, as an async stream of tokens for each request."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import (
    ATTN_TYPE_TO_ALLOCATOR,
    FULL_ATTENTION,
)
from transformers.generation.continuous_batching.requests import RequestStatus
from transformers.generation.continuous_batching.scheduler import (
    SCHEDULER_MAPPING,
    FIFOScheduler,
)

from pointsman_serving.engines.engine import EngineFailedError
from pointsman_serving.engines.transformers.prefix_salt import (
    SaltedAllocator,
    salted_request_id,
    salted_tokens,
)
from pointsman_serving.engines.transformers.requests import Sampling
from pointsman_serving.engines.transformers.sampling import (
    request_processors,
    sampling_arguments,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from pointsman_serving.engines.transformers.options import TransformersOptions

_SCHEDULER = "pointsman_fifo"
_START_SECONDS = 300.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.01
_CPU_PAGE_TOKENS = 64
_CPU_BLOCKS = 128


class GenerationFailedError(RuntimeError):
    """One request failed; others go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one iteration added to a request."""

    token_ids: tuple[int, ...]
    cached_tokens: int
    """Prompt tokens that were in the prefix cache."""
    finish_reason: str | None = None
    """``stop`` (an end token) or ``length`` with the last step."""


class _CountingScheduler(FIFOScheduler):
    """Transformers' own first-in, first-out order, with salted prefixes.

    It also notes each request's prefix hit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cached_tokens: dict[str, int] = {}

    def _infer_request_tokens(self, state: Any, request_ids_to_remove_from_waiting: Any) -> Any:
        pending = state.status == RequestStatus.PENDING
        before = state.position_offset
        if pending:
            # For the lookup, which takes nothing else.
            prompt = salted_tokens(state.remaining_prefill_tokens, state.request_id)
            state.remaining_prefill_tokens = prompt
        tokens = super()._infer_request_tokens(state, request_ids_to_remove_from_waiting)
        if pending:
            tokens = state.remaining_prefill_tokens = list(state.remaining_prefill_tokens)
            # A request that was put back for lack of room finds its own blocks again: the first
            # look is the one that counts.
            self.cached_tokens.setdefault(state.request_id, state.position_offset - before)
        return tokens


SCHEDULER_MAPPING[_SCHEDULER] = _CountingScheduler
ATTN_TYPE_TO_ALLOCATOR[FULL_ATTENTION] = SaltedAllocator


class BatchingEngine:
    """One model behind transformers' continuous batching, which runs on a thread of its own.

    All methods are for one event loop, except the gauges, which any thread may read.
    """

    def __init__(
        self,
        model: Any,
        options: TransformersOptions,
        *,
        end_token_ids: Sequence[int],
        max_model_len: int,
    ) -> None:
        self._end_token_ids = tuple(end_token_ids)
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        on_cpu = model.device.type == "cpu"
        self.manager: Any = model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=True,
                max_new_tokens=max_model_len,
                eos_token_id=list(end_token_ids) or -1,
                use_cache=False,
            ),
            continuous_batching_config=batching_config(
                options, on_cpu=on_cpu, max_model_len=max_model_len
            ),
        )
        self.manager.logit_processor = request_processors(self.vocabulary, skip_unused=on_cpu)
        self._live: set[str] = set()

    def start(self) -> None:
        """Start the thread and wait until it takes requests.

        Raises:
            EngineFailedError: it ended at once, or did not start in time.
        """
        manager = self.manager
        manager.background_thread_status.clear()
        # What manager.start() does, but as a daemon: a process that is told to exit must not wait
        # for a loop that nobody stops.
        manager._generation_thread = threading.Thread(  # noqa: SLF001
            target=manager._run_generation_loop,  # noqa: SLF001
            name="generation",
            daemon=True,
        )
        manager._generation_thread.start()  # noqa: SLF001
        deadline = time.monotonic() + _START_SECONDS
        while self.manager.batch_processor is None:
            if not self.alive or not self.manager.is_running() or time.monotonic() > deadline:
                raise EngineFailedError(self._cause())
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End the thread; requests that still run fail."""
        self.manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)

    @property
    def alive(self) -> bool:
        """Whether requests can be served."""
        return self.manager.background_thread_status.can_accept_new_requests() is None

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._scheduler.active_requests) if self._scheduler is not None else 0

    @property
    def waiting(self) -> int:
        """Requests that are not in the batch yet."""
        queued = self.manager.input_queue.qsize()
        waiting = len(self._scheduler.waiting_requests) if self._scheduler is not None else 0
        return int(queued + waiting)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        config = self.manager.continuous_batching_config
        return int((config.num_blocks or 0) * config.page_size)

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that running requests use, 0 to 1; kept prefixes do not count."""
        scheduler = self._scheduler
        if scheduler is None or not self.capacity_tokens:
            return 0.0
        used = sum(state.position_offset for state in list(scheduler.active_requests.values()))
        return min(1.0, float(used) / self.capacity_tokens)

    async def generate(
        self,
        request_id: str,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        ignore_eos: bool = False,
        cache_salt: str = "",
    ) -> AsyncGenerator[Step]:
        """Generate; leaving the iterator cancels the request.

        Args:
            request_id: not in use by another request.
            prompt: token ids, at least one.
            max_tokens: the answer's length at most, at least 1.
            sampling: how tokens are drawn.
            ignore_eos: go on after an end token.
            cache_salt: prefix pages are shared only with requests of the same salt; empty: with
                those that have none.

        Raises:
            EngineFailedError: the engine cannot serve any more.
            GenerationFailedError: this request failed.
        """
        request_id = salted_request_id(request_id, cache_salt)
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        # Before the request: an answer can be there at once.
        self.manager.register_result_handler(request_id, outputs.put_nowait)
        self._live.add(request_id)
        finished = False
        try:
            added = self.manager.add_request(
                list(prompt),
                request_id=request_id,
                max_new_tokens=max_tokens,
                streaming=True,
                eos_token_id=[] if ignore_eos else list(self._end_token_ids),
                **sampling_arguments(sampling, self.vocabulary),
            )
            if added is None:
                raise EngineFailedError(self._cause())
            seen = 0
            while not finished:
                output = await self._next(outputs)
                if output.error is not None:
                    finished = True
                    self._raise(output.error)
                tokens = tuple(int(token) for token in output.generated_tokens[seen:])
                seen += len(tokens)
                finished = output.is_finished()
                reason = "stop" if self.ends(tokens, ignore_eos=ignore_eos) else "length"
                yield Step(
                    token_ids=tokens,
                    cached_tokens=self._cached(request_id),
                    finish_reason=reason if finished else None,
                )
        finally:
            self._live.discard(request_id)
            if not finished:
                self.manager.cancel_request(request_id)
            self.manager.output_router.result_handlers.pop(request_id, None)
            if (scheduler := self._scheduler) is not None:
                scheduler.cached_tokens.pop(request_id, None)

    async def warm_up(self, prompt: Sequence[int], *, tokens: int) -> None:
        """Generate a few tokens, so that the first request finds everything allocated."""
        steps = self.generate(
            "warm-up", prompt, max_tokens=tokens, sampling=Sampling(), ignore_eos=True
        )
        async with aclosing(steps):
            async for _ in steps:
                pass

    async def _next(self, outputs: asyncio.Queue[Any]) -> Any:
        while True:
            try:
                return await asyncio.wait_for(outputs.get(), timeout=1.0)
            except TimeoutError:
                # A thread that dies hard delivers nothing.
                if not self.alive:
                    raise EngineFailedError(self._cause()) from None

    def _raise(self, error: str) -> None:
        if self.alive:
            raise GenerationFailedError(error)
        raise EngineFailedError(f"{self._cause()}: {error}")

    def _cause(self) -> str:
        fatal = self.manager.background_thread_status.fatal_error
        return f"the generation thread has ended ({fatal or 'no error was recorded'})"

    def _cached(self, request_id: str) -> int:
        scheduler = self._scheduler
        return int(scheduler.cached_tokens.get(request_id, 0)) if scheduler is not None else 0

    def ends(self, tokens: Sequence[int], *, ignore_eos: bool) -> bool:
        """Whether an answer of these tokens has come to its end token."""
        return bool(tokens) and tokens[-1] in self._end_token_ids and not ignore_eos

    @property
    def _scheduler(self) -> Any:
        processor = self.manager.batch_processor
        return None if processor is None else processor.scheduler


def batching_config(options: TransformersOptions, *, on_cpu: bool, max_model_len: int) -> Any:
    """Continuous batching's configuration.

    Transformers' own defaults size the cache by the machine's free memory, which on a CPU means
    minutes of allocation: there the cache is small and nothing is captured or doubled.
    """
    page = options.block_size or _CPU_PAGE_TOKENS
    # One request of full length must fit, or it could never be served.
    blocks = max(_CPU_BLOCKS, math.ceil(max_model_len / page))
    stated = {
        "page_size": options.block_size or (page if on_cpu else None),
        "num_blocks": options.num_blocks or (blocks if on_cpu else None),
        "max_batch_tokens": options.max_num_batched_tokens or (256 if on_cpu else None),
        "max_requests_per_batch": options.max_num_seqs or (16 if on_cpu else None),
        "use_cuda_graph": False if on_cpu else None,
        "use_async_batching": False if on_cpu else None,
        "auto_switch_to_flash": not on_cpu,
        "seed": options.seed,
    }
    return ContinuousBatchingConfig(
        scheduler_type=_SCHEDULER,
        allow_block_sharing=options.prefix_caching,
        per_request_processors=True,
        **{name: value for name, value in stated.items() if value is not None},
    )
