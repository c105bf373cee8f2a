"""The flags of the Transformers engine; where vLLM has the same flag, its name is used."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

EXPERTS = ("auto", "pointsman", "grouped_mm", "batched_mm", "eager")
DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersOptions:
    """What the engine's flags say. None: the engine decides from the device and the model."""

    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:0``; auto: the accelerator, else the CPU."""
    dtype: str = "auto"
    """auto: the checkpoint's; float32 on a CPU, where it is as fast as half precision for small
    models and a token's choice does not depend on who else is in the batch."""
    attention: str = "auto"
    experts: str = "auto"
    """auto: what the pool's ``experts.implementation`` says."""
    block_size: int | None = None
    """Tokens of one page of the KV cache; 64 on a CPU."""
    num_blocks: int | None = None
    """Pages of the KV cache; 128 on a CPU, as the memory allows elsewhere."""
    max_num_batched_tokens: int | None = None
    """Tokens of one iteration; 256 on a CPU."""
    max_num_seqs: int | None = None
    """Requests in one iteration; 16 on a CPU."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together; the model's own limit where None."""
    prefix_caching: bool = True
    threads: int | None = None
    """CPU threads of one iteration; torch decides where None (it honours OMP_NUM_THREADS)."""
    seed: int | None = None
    """Of sampling; a random one where None. Temperature 0 does not depend on it."""
    revision: str = "main"
    """Branch, tag or commit where the model is a repository; a folder has none."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        known = ", ".join(sorted(self._option_string_actions))
        text = f"engine Transformers: {message}; known flags: {known}"
        raise ValueError(text)


def parse_transformers_args(args: Sequence[str]) -> TransformersOptions:
    """Read the pool's ``engine.args``.

    Args:
        args: such as ``["--dtype=float32", "--num-blocks", "256"]``.

    Raises:
        ValueError: an unknown flag or a value that is not allowed; the message names both and
            lists the flags.
    """
    parser = _Parser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=DTYPES)
    parser.add_argument("--attention", default="auto", choices=ATTENTIONS)
    parser.add_argument("--experts", default="auto", choices=EXPERTS)
    for flag in ("block-size", "num-blocks", "max-num-batched-tokens", "max-num-seqs"):
        parser.add_argument(f"--{flag}", type=_positive)
    parser.add_argument("--max-model-len", type=_positive)
    parser.add_argument("--threads", type=_positive)
    parser.add_argument("--seed", type=_natural)
    parser.add_argument("--revision", default="main")
    parser.add_argument(
        "--enable-prefix-caching",
        dest="prefix_caching",
        action=argparse.BooleanOptionalAction,
        default=True,
    )
    try:
        parsed = parser.parse_args(list(args))
    except argparse.ArgumentError as error:
        parser.error(str(error))
    return TransformersOptions(**vars(parsed))


def _positive(text: str) -> int:
    return _whole(text, least=1)


def _natural(text: str) -> int:
    return _whole(text, least=0)


def _whole(text: str, *, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        message = f"{text!r} is not allowed, a whole number of at least {least} is"
        raise argparse.ArgumentTypeError(message)
    return number
