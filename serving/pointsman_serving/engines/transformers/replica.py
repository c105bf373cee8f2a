"""The Transformers engine as a replica holds it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pointsman_serving.engines.app_engine import AppEngine
from pointsman_serving.engines.transformers.app import load_transformers_app
from pointsman_serving.engines.transformers.options import parse_transformers_args

if TYPE_CHECKING:
    from pointsman_serving.engines.options import ReplicaOptions


class TransformersReplica(AppEngine):
    """An :class:`~pointsman_serving.engines.engine.Engine` of the transformers library."""

    failure = "the Transformers engine's generation thread has ended: see the replica's log"

    async def close(self) -> None:
        """End the generation thread."""
        await asyncio.to_thread(self._app.state.engine.stop)


async def start_transformers(options: ReplicaOptions) -> TransformersReplica:
    """Load the model and start the engine.

    Raises:
        ValueError: a flag, the model's folder or its context length is wrong; says what is
            allowed.
    """
    app = await load_transformers_app(
        parse_transformers_args(options.arguments),
        model_path=options.model_path,
        model_name=options.served_model_name,
        experts=options.experts.value,
        max_model_len=options.context_tokens,
        max_sequences=options.max_sequences,
    )
    return TransformersReplica(app)
