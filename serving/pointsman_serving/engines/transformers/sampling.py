"""Sampling settings of each request in a batch that requests share.

Continuous batching in transformers takes ``do_sample`` and, unless told otherwise, the temperature
from the configuration it was started with, which its own server makes of the first request that
comes. Here sampling is on for the batch and each row says how: temperature 0 leaves one token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
    ContinuousBatchingTemperatureLogitsWarper,
    ContinuousBatchingTopKLogitsWarper,
    ContinuousBatchingTopPLogitsWarper,
)
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

if TYPE_CHECKING:
    from pointsman_serving.engines.transformers.requests import Sampling


class TemperatureOrGreedy(ContinuousBatchingTemperatureLogitsWarper):
    """Divides by the row's temperature; at 0 only the likeliest token remains.

    Of equally likely tokens the first, as argmax does: a choice between them by chance would make
    temperature 0 differ from run to run.
    """

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Scores [N, V], temperatures [>= N] as float32 bits."""
        temperature = tensor_arg[: scores.size(0)].view(torch.float32).unsqueeze(-1)  # [N, 1]
        greedy = temperature <= 0
        best = scores.argmax(dim=-1, keepdim=True)  # [N, 1]
        others = torch.ones_like(scores, dtype=torch.bool).scatter_(1, best, False)
        scaled = scores / torch.where(greedy, 1.0, temperature)
        return scaled.masked_fill(others & greedy, -torch.inf)


class TopKWhereAsked(ContinuousBatchingTopKLogitsWarper):
    """Top-k that costs nothing while no request asks for it; it sorts the whole vocabulary."""

    def __init__(self, vocabulary: int, *, skip: bool) -> None:
        super().__init__(TopKLogitsWarper(top_k=vocabulary))
        self._vocabulary = vocabulary
        self._skip = skip
        self._asked = True

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """One k for each row."""
        values: torch.Tensor = super().prepare_tensor_args(requests_with_new_token)
        values = values.clamp(max=self._vocabulary)
        self._asked = not self._skip or bool((values < self._vocabulary).any())
        return values

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Scores [N, V], k [>= N]."""
        if not self._asked:
            return scores
        result: torch.Tensor = super().__call__(scores, tensor_arg)
        return result


class TopPWhereAsked(ContinuousBatchingTopPLogitsWarper):
    """Top-p that costs nothing while no request asks for it; it sorts the whole vocabulary."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__(TopPLogitsWarper(top_p=1.0))
        self._skip = skip
        self._asked = True

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """One p for each row, as float32 bits."""
        values: torch.Tensor = super().prepare_tensor_args(requests_with_new_token)
        self._asked = not self._skip or bool((values.view(torch.float32) < 1.0).any())
        return values

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Scores [N, V], p [>= N] as float32 bits."""
        if not self._asked:
            return scores
        result: torch.Tensor = super().__call__(scores, tensor_arg)
        return result


def request_processors(vocabulary: int, *, skip_unused: bool) -> Any:
    """The logits processors that honour every request's own settings.

    Args:
        vocabulary: V, columns of the logits.
        skip_unused: leave out what no request in the batch asks for. Only where nothing is
            captured in graphs: a graph would keep the choice.
    """
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList())
    processors.logits_processor.extend(
        [
            TemperatureOrGreedy(TemperatureLogitsWarper(1.0)),
            TopKWhereAsked(vocabulary, skip=skip_unused),
            TopPWhereAsked(skip=skip_unused),
        ]
    )
    processors.tensors_required = len(processors.logits_processor)
    processors.do_processing = True
    processors._retrieve_processors_kwargs()  # noqa: SLF001 (the constructor's own last step)
    return processors


def sampling_arguments(sampling: Sampling, vocabulary: int) -> dict[str, float | int]:
    """The keyword arguments of ``add_request`` for a request's settings."""
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or vocabulary,
        "top_p": sampling.top_p,
    }
