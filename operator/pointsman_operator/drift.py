"""Whether a live object still is what was applied. Pure.

The API server adds defaults and other people's fields, so a live object has more than was wanted.
What was wanted must be in it. The digest in the annotation is wanted too, and is another one when a
field is wanted no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def needs_apply(live: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Whether applying ``wanted`` would change anything.

    Args:
        live: the object as the API has it; None where there is none.
        wanted: made by :func:`pointsman_operator.objects.with_hash`.
    """
    return live is None or not _holds(live, wanted)


def _holds(live: object, wanted: object) -> bool:
    """Whether everything wanted is there; mappings may have more, lists may not."""
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            # The API server drops what is empty.
            return live is None and not wanted
        return all(_holds(live.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        if not isinstance(live, Sequence) or isinstance(live, str):
            return live is None and not wanted
        return len(live) == len(wanted) and all(map(_holds, live, wanted))
    return live == wanted
