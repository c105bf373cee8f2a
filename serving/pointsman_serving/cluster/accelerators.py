"""Whether replicas of this environment run on GPUs; nothing heavy is loaded to find out."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_DEVICES = ("nvidia[0-9]*", "kfd")
"""NVIDIA's cards; AMD's compute driver."""
GPU_ENGINE = "vllm"
"""The distribution for GPUs; that for CPUs has another name and the same package inside."""


def machine_has_gpus(devices: Path = Path("/dev")) -> bool:
    """Whether a driver shows a GPU."""
    return any(True for pattern in _DEVICES for _ in devices.glob(pattern))


def engines_use_gpus(devices: Path = Path("/dev")) -> bool:
    """Whether there are GPUs, and engines installed that can use them."""
    try:
        distribution(GPU_ENGINE)
    except PackageNotFoundError:
        return False
    return machine_has_gpus(devices)
