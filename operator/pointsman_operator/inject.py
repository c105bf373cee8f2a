"""Copy Pointsman's own packages into a folder: what the init container of every Ray pod does.

The engine's image knows nothing of Pointsman. It imports the packages from that folder
(``PYTHONPATH``); they are pure Python, so whichever version of Python it has can.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("pointsman_api", "pointsman_serving", "pointsman_kernels")


def copy_packages(target: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Copy the installed packages below ``target``, over what an earlier start left there.

    Raises:
        ModuleNotFoundError: a package is not installed here.
    """
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"the package {package} is not installed in this image: the setting "
                "POINTSMAN_OPERATOR_RUNTIME_IMAGE must name an image of Pointsman"
            )
        shutil.copytree(
            Path(spec.origin).parent,
            target / package,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )


if __name__ == "__main__":
    copy_packages(Path(sys.argv[1]))
