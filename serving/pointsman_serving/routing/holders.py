"""Which replicas were sent a prefix lately: what a large fleet is asked for first."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pointsman_serving.routing.types import Prompt, ReplicaKey

MAX_PREFIXES: Final = 50_000
HOLDERS_PER_PREFIX: Final = 4

# The first kilobyte, or what there is.
_KEY_BLOCKS: Final = 16


def prefix_key(prompt: Prompt) -> int:
    """The hash by which prompts are held together: of the first kilobyte at most."""
    blocks = prompt.blocks
    return blocks[min(len(blocks), _KEY_BLOCKS) - 1][0] if blocks else prompt.root


class PrefixHolders:
    """The latest prefixes and, for each, the last four replicas that got it, latest first."""

    __slots__ = ("_holders", "_limit")

    def __init__(self, *, limit: int = MAX_PREFIXES) -> None:
        self._limit = limit
        self._holders: OrderedDict[int, tuple[ReplicaKey, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def find(self, key: int) -> tuple[ReplicaKey, ...]:
        """The replicas that got the prefix last."""
        return self._holders.get(key, ())

    def note(self, key: int, replica: ReplicaKey) -> None:
        """Remember that a replica gets the prefix."""
        holders = self._holders
        known = holders.get(key)
        if known is None:
            holders[key] = (replica,)
            if len(holders) > self._limit:
                holders.popitem(last=False)
            return
        holders.move_to_end(key)
        if known[0] != replica:
            others = tuple(each for each in known if each != replica)
            holders[key] = (replica, *others[: HOLDERS_PER_PREFIX - 1])
