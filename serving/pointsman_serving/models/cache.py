"""Where models are kept on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


class ModelNameError(ValueError):
    """A model name that cannot be a folder of the cache."""


def cache_root(environment: Mapping[str, str] | None = None) -> Path:
    """The cache directory.

    ``$POINTSMAN_CACHE``, else ``$XDG_CACHE_HOME/pointsman``, else ``~/.cache/pointsman``.

    Args:
        environment: variables to read; the process's own where None.
    """
    variables = os.environ if environment is None else environment
    if own := variables.get("POINTSMAN_CACHE"):
        return Path(own).expanduser()
    if shared := variables.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "pointsman"
    return Path(variables.get("HOME") or "~").expanduser() / ".cache" / "pointsman"


def models_directory(environment: Mapping[str, str] | None = None) -> Path:
    """The folder that holds one folder for each model."""
    return cache_root(environment) / "models"


def model_directory(name: str, *, models: Path | None = None) -> Path:
    """The folder of one model; it need not exist.

    Args:
        name: lower-case letters, digits, ``.``, ``_`` and ``-``; at most 63 characters.
        models: the folder of all models; that of the cache where None.

    Raises:
        ModelNameError: the name is not of that form.
    """
    if _NAME.fullmatch(name) is None:
        message = (
            f"model name {name!r}: allowed are 1 to 63 lower-case letters, digits, '.', '_' and "
            "'-', with a letter or digit at both ends; choose such a name"
        )
        raise ModelNameError(message)
    return (models_directory() if models is None else models) / name
