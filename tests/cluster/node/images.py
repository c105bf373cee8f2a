"""Images without a hub: built by buildah, kept as archives named by the hash of their recipe."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.node.containerd import ctr
from tests.cluster.node.layout import cache_folder
from tests.cluster.node.process import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.cluster.node.sandbox import Sandbox

_CERTIFICATES = "/etc/ssl/certs"
_BUILD_ENVIRONMENT = {
    "SSL_CERT_FILE": f"{_CERTIFICATES}/ca-certificates.crt",
    "UV_SYSTEM_CERTS": "1",
    "UV_LINK_MODE": "copy",
    "UV_CACHE_DIR": "/build-cache/uv",
}
_FORMAT = "1"
"""Part of every hash; a new value makes every image anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an image is made from. Two equal recipes are one image."""

    name: str
    containerfile: str
    """Takes ``ARG BASE_IMAGE`` where there is a base."""
    base: Recipe | None = None
    context: Mapping[str, Path] = field(default_factory=dict)
    """Files and folders that the Containerfile copies, by their name there."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[Path, str] = field(default_factory=dict)
    """Folders of this machine that the build sees; no part of what the image is."""

    @property
    def digest(self) -> str:
        """Twelve hex digits that change with anything that goes into the image."""
        parts = [_FORMAT, self.containerfile, json.dumps(sorted(self.arguments.items()))]
        parts += [self.base.digest] if self.base else []
        parts += [f"{name}={_content(path)}" for name, path in sorted(self.context.items())]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    @property
    def reference(self) -> str:
        """How pods name it. Its tag is no 'latest', so that nobody tries to pull it."""
        return f"localhost/pointsman-test/{self.name}:{self.digest}"

    @property
    def archive(self) -> Path:
        """Where the built image is kept."""
        return cache_folder() / "images" / f"{self.name}-{self.digest}.tar"


def build(recipe: Recipe) -> bool:
    """Build an image and its bases unless the cache has them.

    Returns:
        Whether anything was built.

    Raises:
        ClusterError: buildah failed; with the end of what it said.
    """
    if recipe.archive.exists():
        return False
    if recipe.base is not None:
        build(recipe.base)
    recipe.archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pointsman-image-") as name:
        folder = Path(name)
        context = folder / "context"
        context.mkdir()
        for entry, path in recipe.context.items():
            _copy(path, context / entry)
        (folder / "Containerfile").write_text(recipe.containerfile)
        with _buildah(folder) as buildah:
            run([*buildah, "build", *_build_flags(recipe, folder), context], timeout_seconds=1800)
            partial = recipe.archive.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            target = f"docker-archive:{partial}:{recipe.reference}"
            run([*buildah, "push", "--quiet", recipe.reference, target])
            partial.replace(recipe.archive)
    _forget_older(recipe)
    return True


def load(sandbox: Sandbox, recipe: Recipe, *, name: str = "") -> None:
    """Give an image that was built to the cluster's containerd, under another name as well."""
    ctr(sandbox, ["images", "import", recipe.archive])
    if name:
        ctr(sandbox, ["images", "tag", "--force", recipe.reference, name])


def _build_flags(recipe: Recipe, folder: Path) -> list[str]:
    flags = ["--isolation=chroot", "--network=host", "--layers=false", "--quiet"]
    flags += ["--pull-never", f"--tag={recipe.reference}", f"--file={folder / 'Containerfile'}"]
    if recipe.base is not None:
        base = f"docker-archive:{recipe.base.archive}"
        flags += [f"--build-arg=BASE_IMAGE={base}"]
    flags += [f"--build-arg={name}={value}" for name, value in recipe.arguments.items()]
    if recipe.volumes:
        flags += [f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro"]
        flags += [f"--volume={source}:{target}" for source, target in recipe.volumes.items()]
        flags += [f"--build-arg={name}={value}" for name, value in _BUILD_ENVIRONMENT.items()]
    return flags


@contextlib.contextmanager
def _buildah(folder: Path) -> Iterator[list[str]]:
    """A buildah whose store lives in ``folder`` and goes with it: the archive is the cache."""
    store = folder / "store"
    command = [
        "buildah",
        f"--root={store}",
        f"--runroot={folder / 'run'}",
        "--storage-driver=overlay",
    ]
    try:
        yield command
    finally:
        with contextlib.suppress(Exception):
            run([*command, "rm", "--all"])
            run([*command, "rmi", "--all", "--force"])
        with contextlib.suppress(Exception):
            run(["umount", store / "overlay"])


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if "__pycache__" in file.parts:
            continue
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_mode & 0o111}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _forget_older(recipe: Recipe) -> None:
    for archive in recipe.archive.parent.glob(f"{recipe.name}-*.tar"):
        suffix = archive.stem.removeprefix(f"{recipe.name}-")
        if archive != recipe.archive and len(suffix) == len(recipe.digest) and suffix.isalnum():
            archive.unlink()
