"""DualMap's hotness tree: how many blocks of a prompt are its key."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class HotnessTree:
    """Prefixes that too many requests share get keys that are longer by a block.

    ρ is the share of the requests in a sliding window that have a prefix. A prefix with ρ > 2/n is
    split: the keys of its requests go one block further; it is joined again at ρ < 1/n (n
    instances). Nothing is judged while the window holds fewer than ``minimum_requests``.

    Source: DualMap (arXiv 2602.06502).
    """

    def __init__(
        self, *, base_blocks: int = 2, window_seconds: float = 30.0, minimum_requests: int = 50
    ) -> None:
        self._base = base_blocks
        self._window_seconds = window_seconds
        self._minimum = minimum_requests
        self._window: deque[tuple[float, tuple[int, ...]]] = deque()
        self._counts: dict[int, int] = {}
        self._split: set[int] = set()

    def key_blocks(self, blocks: Sequence[int], instances: int, now: float) -> int:
        """Note a request and say how many of its blocks are its key."""
        self._expire(now, instances)
        total = len(self._window) + 1
        depth = min(self._base, len(blocks))
        counted: list[int] = []
        while depth:
            prefix = blocks[depth - 1]
            counted.append(prefix)
            self._counts[prefix] = self._counts.get(prefix, 0) + 1
            self._judge(prefix, total, instances)
            if prefix not in self._split or depth == len(blocks):
                break
            depth += 1
        self._window.append((now, tuple(counted)))
        return depth

    def _judge(self, prefix: int, total: int, instances: int) -> None:
        if total < self._minimum:
            return
        requests = self._counts.get(prefix, 0)
        if requests * instances > 2 * total:
            self._split.add(prefix)
        elif requests * instances < total:
            self._split.discard(prefix)

    def _expire(self, now: float, instances: int) -> None:
        while self._window and self._window[0][0] < now - self._window_seconds:
            _, counted = self._window.popleft()
            for prefix in counted:
                self._counts[prefix] -= 1
                if not self._counts[prefix]:
                    del self._counts[prefix]
                    self._split.discard(prefix)
                elif prefix in self._split:
                    self._judge(prefix, len(self._window), instances)
