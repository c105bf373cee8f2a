"""Whether an engine takes a pool's arguments, as far as that can be known without loading it."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman_api.modelpool import EngineType
from pointsman_serving.engines.simulated.options import parse_simulated_args
from pointsman_serving.engines.transformers.options import parse_transformers_args


def check_arguments(engine: EngineType, arguments: Sequence[str]) -> None:
    """Parse the arguments of our own engines; vLLM knows its own only once it is loaded.

    Raises:
        ValueError: an unknown flag or a wrong value; the message lists what is allowed.
    """
    if engine is EngineType.SIMULATED:
        parse_simulated_args(["--served-model-name=any", *arguments])
    elif engine is EngineType.TRANSFORMERS:
        parse_transformers_args(arguments)
