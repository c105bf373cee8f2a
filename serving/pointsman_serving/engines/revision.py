"""The revision of what a replica says: replicas of the same one answer with the same tokens."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from pointsman_api.modelpool import EngineType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pointsman_serving.engines.options import ReplicaOptions


def token_revision(
    options: ReplicaOptions, *, env: Mapping[str, str] | None = None, image: str = ""
) -> str:
    """Digest of everything in a replica's options that decides on its tokens.

    How many replicas there are, how many requests each runs at once and what the pool is called
    does not count. The name that requests ask for counts for Simulated alone, whose text follows
    from it. A branch or tag of a model repository counts by its name: only a commit tells that
    the weights behind it have changed.

    Args:
        options: the replica's options; their own ``revision`` is not looked at.
        env: environment variables of the engine's process.
        image: the container image that the pool names for the engine; empty: the default.

    Returns:
        16 hex digits; equal for equal arguments, on every machine.
    """
    simulated = options.engine == EngineType.SIMULATED
    parts = {
        "engine": str(options.engine),
        "model": options.served_model_name if simulated else options.model_path,
        "context_tokens": options.context_tokens,
        "experts": str(options.experts),
        "arguments": list(options.arguments),
        "env": dict(env or {}),
    }
    if image:
        parts["image"] = image
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, digest_size=8).hexdigest()
