"""Requests as an application at the root sees them, whatever prefix Ray Serve routes by."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope


def rebased(scope: Scope) -> Scope:
    """The scope as an application at the root sees it.

    Serve puts the route prefix into ``root_path`` and leaves it in ``path``, as ASGI asks. Not
    every engine's application and middleware looks at both.
    """
    prefix = scope.get("root_path", "").rstrip("/")
    if not prefix or not scope["path"].startswith(prefix):
        return scope
    inner = dict(scope)
    inner["root_path"] = ""
    inner["path"] = scope["path"][len(prefix) :] or "/"
    raw = scope.get("raw_path")
    if raw is not None and raw.startswith(prefix.encode()):
        inner["raw_path"] = raw[len(prefix) :] or b"/"
    return inner
