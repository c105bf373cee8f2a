from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pointsman_operator.inject import PACKAGES, copy_packages


def test_the_copied_packages_run_where_nothing_of_ours_is_installed(tmp_path: Path) -> None:
    copy_packages(tmp_path)

    code = "import pointsman_serving.engines.drain as m; print(m.__file__)"
    found = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in found.stdout
    assert set(PACKAGES) == {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.rglob("*/pointsman_*/__pycache__/*.cpython-0*"))


def test_what_an_earlier_start_left_is_replaced(tmp_path: Path) -> None:
    copy_packages(tmp_path)
    module = tmp_path / "pointsman_api" / "meta.py"
    module.write_text("broken")

    copy_packages(tmp_path)

    assert "broken" != module.read_text()


def test_a_package_that_is_not_installed_is_told_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="POINTSMAN_OPERATOR_RUNTIME_IMAGE"):
        copy_packages(tmp_path, ["pointsman_nowhere"])
