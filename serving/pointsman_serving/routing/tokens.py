"""From bytes to a pool's tokens, and how long its answers are."""

from __future__ import annotations

from typing import Final

from pointsman_serving.routing.line import Line
from pointsman_serving.routing.prefix import PRIOR_BYTES_PER_TOKEN

PRIOR_OUTPUT_TOKENS: Final = 256.0

_PRIOR_STRENGTH: Final = 4.0
_MEMORY: Final = 64.0
_MOST_TOKENS_PER_BYTE: Final = 1.0
_FEWEST_TOKENS_PER_BYTE: Final = 1 / 16
_MOST_OVERHEAD_TOKENS: Final = 512.0
_PRIOR_PROMPT: Final = (0.0, 1.0 / PRIOR_BYTES_PER_TOKEN)


class TokenModel:
    """What a pool's tokenizer and template make of bytes, and how long its answers are.

    Args:
        fleet: the same for all pools together; a pool is taken for it until it has answers of
            its own, so that an unknown pool is thought neither longer-winded nor briefer.
    """

    __slots__ = ("_answer_weight", "_fleet", "_line", "learned_answer", "learned_prompt")

    def __init__(self, fleet: TokenModel | None = None) -> None:
        self._fleet = fleet
        self._line: Line | None = None
        self.learned_prompt: tuple[float, float] | None = None
        """``prompt`` where it was learned from the pool's own answers."""
        self.learned_answer: float | None = None
        """``mean_answer_tokens`` where it was."""
        self._answer_weight = 0.0

    @property
    def learned(self) -> bool:
        """Whether all of it is the pool's own."""
        return self.learned_prompt is not None and self.learned_answer is not None

    @property
    def prompt(self) -> tuple[float, float]:
        """Tokens of an empty prompt (the template's) and tokens per byte."""
        if self.learned_prompt is not None:
            return self.learned_prompt
        return _PRIOR_PROMPT if self._fleet is None else self._fleet.prompt

    @property
    def mean_answer_tokens(self) -> float:
        """Expected length of an answer without a limit."""
        if self.learned_answer is not None:
            return self.learned_answer
        return PRIOR_OUTPUT_TOKENS if self._fleet is None else self._fleet.mean_answer_tokens

    def prompt_tokens(self, total_bytes: int) -> float:
        """Expected tokens of a prompt, at least 1."""
        overhead, per_byte = self.prompt
        return max(1.0, overhead + per_byte * total_bytes)

    def output_tokens(self, max_output_tokens: int | None) -> float:
        """Expected tokens of an answer, at least 1."""
        mean = self.mean_answer_tokens
        return mean if max_output_tokens is None else max(1.0, min(mean, max_output_tokens))

    def learn_prompt(self, total_bytes: int, prompt_tokens: int) -> None:
        """Take the engine's own count of a prompt."""
        if total_bytes <= 0 or prompt_tokens <= 0:
            return
        if self._line is None:
            overhead, per_byte = self.prompt
            self._line = Line(
                intercept=overhead, slope=per_byte, scale=256.0, reach=4096.0, strength=1.0
            )
        self._line.learn(total_bytes, prompt_tokens)
        self.learned_prompt = (
            min(self._line.intercept, _MOST_OVERHEAD_TOKENS),
            min(max(self._line.slope, _FEWEST_TOKENS_PER_BYTE), _MOST_TOKENS_PER_BYTE),
        )
        if self._fleet is not None:
            self._fleet.learn_prompt(total_bytes, prompt_tokens)

    def learn_output(self, completion_tokens: int) -> None:
        """Take the length of a complete answer."""
        if completion_tokens <= 0:
            return
        mean = self.mean_answer_tokens
        self._answer_weight = min(self._answer_weight + 1.0, _MEMORY)
        share = 1.0 / (self._answer_weight + _PRIOR_STRENGTH)
        self.learned_answer = mean + (completion_tokens - mean) * share
        if self._fleet is not None:
            self._fleet.learn_output(completion_tokens)
