from __future__ import annotations

from pathlib import Path

import pytest

from pointsman_serving.cluster.accelerators import machine_has_gpus


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ((), False),
        (("null", "nvidiactl"), False),
        (("nvidia0", "nvidiactl"), True),
        (("kfd",), True),
    ],
)
def test_gpus_are_seen_when_a_driver_shows_one(
    tmp_path: Path, devices: tuple[str, ...], expected: bool
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    assert expected == machine_has_gpus(tmp_path)
