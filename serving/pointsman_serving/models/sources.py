"""From a ModelPool's model source to what an engine on this machine is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pointsman_api.modelpool import MODELS_FOLDER, ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model as an engine finds it."""

    path: str
    """A folder, or the name of a repository that the engine fetches itself."""
    revision: str = ""
    """Of a repository; empty for a folder."""


class LocalSourceError(ValueError):
    """A source that this machine cannot serve from."""

    def __init__(self, *, field: tuple[str, ...], value: str, message: str, next_step: str) -> None:
        super().__init__(f"{value} {message}; {next_step}")
        self.field = field
        """Path below ``source``."""
        self.value = value
        self.message = message
        self.next_step = next_step


def local_model(source: ModelSource, *, models: Path) -> LocalModel:
    """Where a model is on this machine.

    Args:
        source: as the pool states it.
        models: the folder that stands for ``/var/lib/pointsman/models``.

    Raises:
        LocalSourceError: the folder is not there, or the source needs a cluster.
    """
    if source.host_path is not None:
        return LocalModel(path=str(_host_folder(source.host_path.path, models)))
    if source.hugging_face is not None:
        repository = source.hugging_face
        return LocalModel(path=repository.repository, revision=repository.revision)
    raise LocalSourceError(
        field=("type",),
        value=source.type,
        message="is a source that needs a Kubernetes cluster",
        next_step="here use HostPath with a folder of this machine, or HuggingFace",
    )


def _host_folder(path: str, models: Path) -> Path:
    stated = PurePosixPath(path)
    below = stated.is_relative_to(MODELS_FOLDER)
    folder = models / stated.relative_to(MODELS_FOLDER) if below else Path(path)
    if (folder / "config.json").is_file():
        return folder
    there = sorted(entry.parent.name for entry in models.glob("*/config.json"))
    message = (
        f"is a folder without a model ({folder} has no config.json)"
        if folder.is_dir()
        else f"is not there (looked for {folder})"
    )
    hint = f"models in {models}: {', '.join(there) or 'none'}; " if below else ""
    raise LocalSourceError(
        field=("hostPath", "path"),
        value=path,
        message=message,
        next_step=(
            f"{hint}make the demo's with `pointsman model import smollm2` and `pointsman model "
            "upcycle smollm2 smollm2-moe`, or name a folder with config.json and weights"
        ),
    )
