"""Whether this machine has GPUs, asked of the device files so that nothing heavy is loaded."""

from __future__ import annotations

from pathlib import Path

_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")
"""NVIDIA's cards; AMD's compute driver; GPUs under WSL."""


def machine_has_gpus(devices: Path = Path("/dev")) -> bool:
    """Whether a driver shows a GPU."""
    return any(True for pattern in _DEVICES for _ in devices.glob(pattern))
