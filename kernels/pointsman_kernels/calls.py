"""Counts of how often each expert is called."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class ExpertCalls:
    """Expert calls by layer and expert, counted where the tokens are.

    A call is one token sent to one expert. Counts are added on the device, without waiting for
    it; only :meth:`snapshot` does.
    """

    def __init__(self, *, layers: int, num_experts: int) -> None:
        if layers < 1 or num_experts < 1:
            message = f"layers is {layers} and num_experts {num_experts}; both must be 1 or more"
            raise ValueError(message)
        self.layers = layers
        self.num_experts = num_experts
        self._lock = threading.Lock()
        self._counts: list[torch.Tensor | None] = [None] * layers

    def add(self, layer: int, counts: torch.Tensor) -> None:
        """Add one batch.

        Args:
            layer: 0 up to ``layers``.
            counts: [E] int64, rows of each expert.

        Raises:
            ValueError: a layer or a shape that is not counted here.
        """
        if not 0 <= layer < self.layers:
            message = f"layer is {layer}; allowed are 0 to {self.layers - 1}"
            raise ValueError(message)
        if counts.shape != (self.num_experts,):
            message = f"counts have shape {tuple(counts.shape)}; allowed is [{self.num_experts}]"
            raise ValueError(message)
        with self._lock:
            total = self._counts[layer]
            if total is None:
                self._counts[layer] = counts.detach().clone()
            else:
                total += counts

    def snapshot(self) -> list[list[int]]:
        """The counts so far, [layers][experts]; they never go down."""
        with self._lock:
            copies = [None if total is None else total.clone() for total in self._counts]
        return [
            [0] * self.num_experts if total is None else [int(count) for count in total.tolist()]
            for total in copies
        ]
