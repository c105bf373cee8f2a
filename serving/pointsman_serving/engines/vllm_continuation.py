"""vLLM goes on with an answer that another replica began.

The front end keeps the request as it was asked for, and its detokenizer, stop strings and parsers
see the whole answer. The engine core gets the tokens already sent as more of the prompt, and is
asked for that many tokens less. vLLM does not offer this; what is used of its internals is tried
once at the start (:func:`unsupported_reason`), so that another version refuses to continue instead
of saying something wrong.
Source: vLLM 0.32, ``v1/engine/{async_llm,output_processor,detokenizer}``.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import IterationStats

from pointsman_serving.engines.continuation import (
    ARGUMENTS_FIELD,
    CONTINUE_ARGUMENT,
    checked_tokens,
    too_many_tokens,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_LOG = logging.getLogger(__name__)

_ADD_REQUEST = ["self", "request", "prompt", "parent_req", "index", "queue"]


@dataclass(slots=True, eq=False)
class _Seam:
    """Where a request's old tokens end, on its way through vLLM."""

    sent: tuple[int, ...]
    prompt_tokens: int = 0
    taken: bool = False
    """The engine core was told, or has nothing to do."""
    replay: Any = None
    """The output with the old tokens, until it is yielded; None where there is none to show."""

    def __deepcopy__(self, memo: object) -> _Seam:
        """The same one: vLLM copies sampling parameters, and this tells what became of them."""
        return self


class ContinuingAsyncLLM(AsyncLLM):
    """AsyncLLM that takes ``pointsman_continue`` among a request's extra arguments."""

    unsupported: str | None = None
    """Why nothing can be continued here; set where the start found that out."""

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **more: Any
    ) -> AsyncGenerator[Any, None]:
        """AsyncLLM's, and as if the given tokens had been generated already.

        The first output has exactly these; it comes when the first new token does, with what the
        prefix cache held of the prompt.

        Raises:
            VLLMValidationError: this request cannot be continued, or not from these tokens.
        """
        extra = getattr(sampling_params, "extra_args", None)
        if not extra or CONTINUE_ARGUMENT not in extra:
            return self._generate(prompt, sampling_params, request_id, more)
        if self.unsupported is not None:
            raise VLLMValidationError(self.unsupported, parameter=ARGUMENTS_FIELD)
        vocabulary = self.model_config.get_vocab_size()
        try:
            sent = checked_tokens(extra[CONTINUE_ARGUMENT], vocabulary=vocabulary)
        except ValueError as error:
            raise VLLMValidationError(str(error), parameter=ARGUMENTS_FIELD) from None
        reason = self._obstacle(prompt, sampling_params)
        if reason is not None:
            raise VLLMValidationError(
                f"an answer with {reason} cannot be continued; leave it or "
                f"{ARGUMENTS_FIELD}.{CONTINUE_ARGUMENT} out",
                parameter=ARGUMENTS_FIELD,
            )
        self._check_room(len(prompt["prompt_token_ids"]), len(sent), sampling_params.max_tokens)
        params = copy.copy(sampling_params)
        others = {name: value for name, value in extra.items() if name != CONTINUE_ARGUMENT}
        params.extra_args = others or None
        if not sent:
            return self._generate(prompt, params, request_id, more)
        seam = _Seam(sent)
        params.extra_args = {**others, CONTINUE_ARGUMENT: seam}
        return self._continue(seam, self._generate(prompt, params, request_id, more))

    def _generate(
        self, prompt: Any, params: Any, request_id: str, more: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        outputs: AsyncGenerator[Any, None] = super().generate(prompt, params, request_id, **more)
        return outputs

    def _obstacle(self, prompt: Any, params: SamplingParams) -> str | None:
        """What makes the engine core look at the answer alone, the server's defaults included."""
        config = self.vllm_config
        obstacles = {
            "an encoder's prompt or embeddings": not isinstance(prompt, dict)
            or prompt.get("type") not in ("token", "multimodal"),
            "several choices": params.n != 1,
            "log probabilities": params.logprobs is not None
            or params.prompt_logprobs is not None
            or bool(params.logprob_token_ids)
            or params.prompt_logprob_token_ids is not None,
            "a presence or frequency penalty": bool(
                params.presence_penalty or params.frequency_penalty
            ),
            "bad words": bool(params.bad_words),
            "structured outputs": params.structured_outputs is not None,
            "repetition detection": params.repetition_detection is not None,
            "a thinking budget": params.thinking_token_budget is not None,
            "a replayed trace": bool(params.trace_decode_token_ids),
            "a watermark": config.watermark_config is not None and params.watermarking is not False,
            "logits processors of the engine": bool(self.model_config.logits_processors),
            "a diffusion model": bool(self.model_config.is_diffusion),
            "transferred caches": bool(
                {"kv_transfer_params", "ec_transfer_params"} & set(params.extra_args or ())
            ),
        }
        return next((name for name, found in obstacles.items() if found), None)

    def _check_room(self, prompt_tokens: int, sent: int, max_tokens: int | None) -> None:
        room = self.model_config.max_model_len - prompt_tokens
        limit = room if max_tokens is None else min(room, max_tokens)
        if sent > limit:
            raise VLLMValidationError(too_many_tokens(sent, limit), parameter=ARGUMENTS_FIELD)

    async def _continue(
        self, seam: _Seam, outputs: AsyncGenerator[Any, None]
    ) -> AsyncGenerator[Any, None]:
        async with aclosing(outputs):
            async for output in outputs:
                if not seam.taken:
                    raise RuntimeError(
                        "vLLM did not hand the request to _add_request: this version cannot "
                        "continue answers"
                    )
                # The engine core counts the old tokens as prompt, too.
                cached = min(output.num_cached_tokens or 0, seam.prompt_tokens)
                created = output.num_cache_creation_tokens or 0
                output.num_cached_tokens = cached
                output.num_cache_creation_tokens = min(created, seam.prompt_tokens - cached)
                if seam.replay is not None:
                    replay, seam.replay = seam.replay, None
                    replay.num_cached_tokens = output.num_cached_tokens
                    replay.num_cache_creation_tokens = output.num_cache_creation_tokens
                    yield replay
                yield output

    async def _add_request(
        self,
        request: Any,
        prompt: str | None,
        parent_req: Any,
        index: int,
        queue: RequestOutputCollector,
    ) -> None:
        params = request.sampling_params
        extra = (params.extra_args if params is not None else None) or {}
        seam = extra.get(CONTINUE_ARGUMENT)
        if seam is None:
            await super()._add_request(request, prompt, parent_req, index, queue)
            return
        others = {name: value for name, value in extra.items() if name != CONTINUE_ARGUMENT}
        params.extra_args = others or None
        self.check_admission(request_id=request.request_id)
        self.output_processor.add_request(request, prompt, parent_req, index, queue)
        seam.prompt_tokens = len(request.prompt_token_ids)
        finished = replay(self.output_processor, request, seam, self.model_config.max_model_len)
        seam.taken = True
        if not finished:
            await self.engine_core.add_request_async(rest_of(request, seam.sent))
        if self.log_requests:
            _LOG.info(
                "Added request %s, continued after %d tokens.", request.request_id, len(seam.sent)
            )


def replay(processor: Any, request: Any, seam: _Seam, max_model_len: int) -> bool:
    """Show the front end the tokens already sent, as if the engine core had made them.

    Args:
        processor: vLLM's output processor, to which the request has been added.
        request: the request as it was asked for.
        seam: gets the output that shows the tokens, for a stream that goes on.
        max_model_len: tokens of prompt and answer together.

    Returns:
        Whether they are the whole answer; its collector then has its last output.
    """
    state = processor.request_states[request.request_id]
    finish_reason, stop_reason = _ending(request, seam.sent, max_model_len)
    output = EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=list(seam.sent),
        finish_reason=finish_reason,
        stop_reason=stop_reason,
    )
    # No statistics: another engine made these tokens. Only tracing cannot do without.
    iteration = IterationStats() if processor.tracing_enabled else None
    queue, state.queue = state.queue, None
    stats = copy.copy(state.stats)
    processed = processor.process_outputs([output], time.monotonic(), iteration)
    state.queue, state.stats = queue, stats
    shown = processed.request_outputs
    if request.request_id not in processor.request_states:
        for last in shown:
            queue.put(last)
        return True
    # The next output is the first that the engine core makes: it brings the cached tokens.
    state.is_prefilling = True
    seam.replay = shown[0] if shown else None
    return False


def _ending(
    request: Any, sent: tuple[int, ...], max_model_len: int
) -> tuple[FinishReason | None, int | None]:
    """Why the tokens sent are the whole answer, as ``check_stop`` says it; stop strings aside."""
    params = request.sampling_params
    if sent[-1] == params.eos_token_id:
        return FinishReason.STOP, None
    if sent[-1] in (params.stop_token_ids or ()):
        return FinishReason.STOP, sent[-1]
    total = len(request.prompt_token_ids) + len(sent)
    if total >= max_model_len or len(sent) >= params.max_tokens:
        return FinishReason.LENGTH, None
    return None, None


def rest_of(request: Any, sent: tuple[int, ...]) -> Any:
    """The request that makes only the tokens after these; the given one stays as it is."""
    params = copy.copy(request.sampling_params)
    params.max_tokens -= len(sent)
    params.min_tokens = max(0, params.min_tokens - len(sent))
    rest = copy.copy(request)
    rest.sampling_params = params
    rest.prompt_token_ids = [*request.prompt_token_ids, *sent]
    return rest


def unsupported_reason(
    client_class: Any = AsyncLLM, processor_class: Any = OutputProcessor
) -> str | None:
    """Why this version of vLLM cannot continue answers; None where it can.

    Runs one replay on an output processor of its own.
    """
    found = [*inspect.signature(client_class._add_request).parameters]  # noqa: SLF001
    if found != _ADD_REQUEST:
        return f"AsyncLLM._add_request takes {', '.join(found)}, not {', '.join(_ADD_REQUEST)}"
    try:
        return _probe(processor_class(None, log_stats=False))
    except Exception as error:  # whatever another version does differently
        return f"a replay failed with {type(error).__name__}: {error}"


def _probe(processor: Any) -> str | None:
    params = SamplingParams(max_tokens=4, output_kind=RequestOutputKind.DELTA)
    request = EngineCoreRequest(
        request_id="probe",
        prompt_token_ids=[1, 2],
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id="probe",
    )
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "probe")
    processor.add_request(request, None, None, 0, queue)
    seam = _Seam((3, 4))
    finished = replay(processor, request, seam, max_model_len=16)
    rest = rest_of(request, seam.sent)
    new = EngineCoreOutput(request_id="probe", new_token_ids=[5], finish_reason=FinishReason.LENGTH)
    processor.process_outputs([new])
    last = queue.get_nowait()
    seen = (
        finished,
        list(seam.replay.outputs[0].token_ids),
        list(seam.replay.prompt_token_ids),
        list(last.outputs[0].token_ids),
        last.finished,
        list(rest.prompt_token_ids),
        rest.sampling_params.max_tokens,
        (list(request.prompt_token_ids), params.max_tokens),
    )
    expected = (False, [3, 4], [1, 2], [5], True, [1, 2, 3, 4], 2, ([1, 2], 4))
    return None if seen == expected else f"a replay gave {seen}, not {expected}"
