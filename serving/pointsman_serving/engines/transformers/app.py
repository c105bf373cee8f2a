"""The Transformers engine: a model of the transformers library behind vLLM's API.

It serves what vLLM does not know yet, and mixtures of experts through our own kernels. Loading,
continuous batching, the paged cache and prefix sharing are transformers'. Its own server is not
used: that takes sampling settings from the first request for all later ones, ignores stop strings
and ``max_completion_tokens``, sends no ``[DONE]``, and lets any client unload the model.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from pointsman_serving.engines.transformers.options import TransformersOptions

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WARM_UP_TOKENS = 4
_WARM_UP_PROMPT_TOKENS = 16


async def load_transformers_app(
    options: TransformersOptions,
    *,
    model_path: str,
    model_name: str,
    experts: str = "Default",
    max_model_len: int | None = None,
    max_sequences: int | None = None,
) -> Starlette:
    """Load a model, start its engine and warm it up.

    Args:
        options: the engine's flags; they win over the arguments below.
        model_path: a Hugging Face model folder on this machine, for which nothing is asked of a
            hub, or the name of a repository, which transformers fetches.
        model_name: the name that requests ask for.
        experts: the pool's ``experts.implementation``: Pointsman or Default.
        max_model_len: tokens of prompt and answer together; the model's own limit where None.
        max_sequences: requests in one iteration.

    Returns:
        The ASGI application. It needs no lifespan events; ``app.state.engine.stop()`` ends it.

    Raises:
        ValueError: the folder, the experts implementation or the context length cannot be served;
            says what is allowed.
    """
    return await asyncio.to_thread(
        _load,
        options,
        model_path,
        model_name,
        experts,
        max_model_len,
        max_sequences,
        asyncio.get_running_loop(),
    )


def _load(
    options: TransformersOptions,
    model_path: str,
    model_name: str,
    experts: str,
    max_model_len: int | None,
    max_sequences: int | None,
    loop: asyncio.AbstractEventLoop,
) -> Starlette:
    if Path(model_path).is_dir():
        # Before transformers is imported: it reads it once.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from pointsman_serving.engines.transformers.engine import BatchingEngine
    from pointsman_serving.engines.transformers.metrics import EngineMetrics
    from pointsman_serving.engines.transformers.server import ReplicaService

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.max_num_seqs is None:
        options = dataclasses.replace(options, max_num_seqs=max_sequences)
    model, tokenizer = load_model(options, model_path)
    _return_freed_memory()
    calls = select_experts(model, _experts_name(options, experts))
    context = _context(model, options.max_model_len or max_model_len)
    engine = BatchingEngine(model, options, end_token_ids=_end_tokens(model), max_model_len=context)
    engine.start()
    if engine.capacity_tokens < context:
        engine.stop()
        message = (
            f"max_model_len is {context}, the KV cache holds {engine.capacity_tokens} tokens; "
            "raise --num-blocks, or lower --max-model-len (contextTokens)"
        )
        raise ValueError(message)
    prompt = [1] * min(_WARM_UP_PROMPT_TOKENS, context - _WARM_UP_TOKENS)
    warm_up = engine.warm_up(prompt, tokens=_WARM_UP_TOKENS)
    asyncio.run_coroutine_threadsafe(warm_up, loop).result()
    service = ReplicaService(
        engine,
        EngineMetrics(engine, model_name=model_name, calls=calls),
        tokenizer,
        model_name=model_name,
        max_model_len=context,
        created=int(time.time()),
    )
    app = service.application()
    app.state.engine = engine
    return app


def load_model(options: TransformersOptions, model_path: str) -> tuple[Any, Any]:
    """Load a model and its tokenizer onto the device.

    Raises:
        ValueError: the path is neither a model folder nor a repository's name.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = (Path(model_path) / "config.json").is_file()
    if not local and (Path(model_path).is_dir() or _REPOSITORY.fullmatch(model_path) is None):
        message = (
            f"model path {model_path}: no config.json there; allowed is a Hugging Face model "
            "folder (make one with `pointsman model import`) or a repository ORGANISATION/NAME"
        )
        raise ValueError(message)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: Any = options.dtype
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    attention = "sdpa" if options.attention == "auto" else options.attention
    place = {"revision": options.revision, "local_files_only": local}
    model = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=dtype, attn_implementation=attention, **place
    )
    tokenizer = AutoTokenizer.from_pretrained(model_path, **place)
    return model.to(device).eval(), tokenizer


def select_experts(model: Any, name: str | None) -> Any:
    """Choose the experts implementation and count its calls.

    Args:
        model: a loaded transformers model.
        name: ``pointsman``, one of transformers' own, or None to leave the model as it is.

    Returns:
        The :class:`~pointsman_kernels.calls.ExpertCalls`; None where ours does not run.
    """
    if name is None:
        return None
    if name != "pointsman":
        model.set_experts_implementation(name)
        return None
    from pointsman_kernels.integrations.transformers import count_expert_calls, register

    model.set_experts_implementation(register())
    return count_expert_calls(model)


def _return_freed_memory() -> None:
    # Converting a checkpoint leaves as much freed memory in glibc's arenas as the model has
    # weights, for good: 1.1 GB of 3.4 GB for 373 million parameters.
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library, which keeps no arenas


def _experts_name(options: TransformersOptions, experts: str) -> str | None:
    if options.experts != "auto":
        return options.experts
    names = {"Pointsman": "pointsman", "Default": None}
    if experts not in names:
        message = f"experts implementation is {experts!r}; allowed are {', '.join(names)}"
        raise ValueError(message)
    return names[experts]


def _context(model: Any, wanted: int | None) -> int:
    limit = int(model.config.get_text_config().max_position_embeddings)
    if wanted is None:
        return limit
    if not 2 <= wanted <= limit:
        message = (
            f"max_model_len is {wanted}; allowed are 2 to {limit}, the model's "
            "max_position_embeddings"
        )
        raise ValueError(message)
    return wanted


def _end_tokens(model: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    if found is None:
        found = model.config.get_text_config().eos_token_id
    if found is None:
        return []
    return [int(token) for token in found] if isinstance(found, list) else [int(found)]
