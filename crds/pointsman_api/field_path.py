"""Fields inside an object, as messages name them."""

from __future__ import annotations

FieldPath = tuple[str | int, ...]
"""Names of fields and indexes of lists, from the outside inwards."""


def field_text(path: FieldPath) -> str:
    """``spec.rules[0].name``, as kubectl writes it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
