"""Model folders appear whole or not at all, whoever else is making them at the same time."""

from __future__ import annotations

import fcntl
import json
import shutil
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

RECIPE_FILE = "pointsman.json"
"""States in a model folder what it was made from, so that making it again can be skipped."""


class ModelFolderError(RuntimeError):
    """A model folder that cannot be made or used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A finished model folder."""

    path: Path
    made: bool
    """False where it was there already."""


def is_model_folder(path: Path) -> bool:
    """Whether the folder holds a configuration and weights."""
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def recipe_of(path: Path) -> dict[str, object] | None:
    """What the folder says it was made from; None where it does not say."""
    try:
        recipe = json.loads((path / RECIPE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return recipe if isinstance(recipe, dict) else None


def make_model_folder(
    target: Path,
    recipe: Mapping[str, object],
    build: Callable[[Path], None],
    *,
    force: bool = False,
) -> ModelFolder:
    """Make a model folder once.

    ``build`` fills an empty folder beside the target, which is then renamed into place: readers
    see the old folder or the new one. A lock file lets one process build while others wait and
    then find the result.

    Args:
        target: the folder to make.
        recipe: everything that the result depends on, as JSON values.
        build: writes the files.
        force: replace a folder that is there.

    Raises:
        ModelFolderError: the target is there with another recipe and ``force`` is not set, or
            the disk refuses.
    """
    wanted = json.loads(json.dumps(recipe))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target.parent / f".{target.name}.lock"):
            if target.exists() and not force:
                _require_same(target, wanted)
                return ModelFolder(path=target, made=False)
            _remove_leftovers(target)
            draft = target.parent / f".{target.name}.{uuid.uuid4().hex}.draft"
            draft.mkdir()
            try:
                build(draft)
                text = json.dumps(wanted, indent=2, sort_keys=True) + "\n"
                (draft / RECIPE_FILE).write_text(text, encoding="utf-8")
                _replace(draft, target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        message = f"{target}: cannot make the model folder: {error}; check the disk"
        raise ModelFolderError(message) from error
    return ModelFolder(path=target, made=True)


def _require_same(target: Path, wanted: Mapping[str, object]) -> None:
    found = recipe_of(target)
    if found == wanted and is_model_folder(target):
        return
    if found is None:
        what = "something that pointsman did not make"
    else:
        differing = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        what = "another model: " + ", ".join(
            f"{key} is {found.get(key)!r}, wanted {wanted.get(key)!r}" for key in differing
        )
        if not differing:
            what = "a model with files missing"
    message = f"{target} holds {what}; use --force to replace it, or choose another name"
    raise ModelFolderError(message)


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    # The kernel drops the lock when its holder dies, so a crash blocks nobody.
    with lock.open("w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remove_leftovers(target: Path) -> None:
    # Only under the lock: no other process can be writing a draft of this target.
    for leftover in target.parent.glob(f".{target.name}.*.draft"):
        shutil.rmtree(leftover, ignore_errors=True)


def _replace(draft: Path, target: Path) -> None:
    if target.exists():
        old = target.parent / f".{target.name}.{uuid.uuid4().hex}.draft"
        target.replace(old)
        draft.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        draft.replace(target)
