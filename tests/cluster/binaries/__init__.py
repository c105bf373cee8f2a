"""The programs of a real Kubernetes, found or made: ``binary("kube-apiserver")``.

Looked for in the folder that ``KUBEBUILDER_ASSETS`` names, then in the cache, then built from the
Go modules that the go.mod files here pin. ``python -m tests.cluster.binaries`` makes all of them.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from tests.cluster.binaries import go, wheels
from tests.cluster.binaries.errors import BinaryMissingError
from tests.cluster.binaries.recipes import PROGRAMS, GoProgram

__all__ = ["PROGRAMS", "BinaryMissingError", "binary", "kuberay_config", "kuberay_crds"]


def binary(name: str) -> Path:
    """The path of a program, which is built or fetched first where it is not there.

    Raises ``BinaryMissingError`` with what to do about it.
    """
    program = PROGRAMS.get(name)
    if program is None:
        raise LookupError(f"No program {name!r} here: there are {', '.join(PROGRAMS)}")
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (path := Path(assets) / name).exists():
        return path.resolve()
    if isinstance(program, GoProgram):
        return go.built(name, program)
    if platform.machine() in ("x86_64", "AMD64"):
        return wheels.layer_program(program.member)
    found = shutil.which(name)
    if found is None:
        raise BinaryMissingError(
            f"{name} comes ready for x86-64 only, and this machine is {platform.machine()}: "
            f"install {name} and have it in PATH"
        )
    return Path(found)


def kuberay_config() -> Path:
    """The folder ``config`` of KubeRay's module: crd/bases, rbac and more."""
    return go.module_folder("kuberay", "github.com/ray-project/kuberay/ray-operator") / "config"


def kuberay_crds() -> list[Path]:
    """KubeRay's CRDs, one file each."""
    return sorted((kuberay_config() / "crd" / "bases").glob("*.yaml"))
