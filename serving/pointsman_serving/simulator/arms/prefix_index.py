"""What a router believes that instances have cached, from where it sent which prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pointsman_serving.simulator.request import BLOCK_TOKENS

if TYPE_CHECKING:
    from pointsman_serving.simulator.request import SimRequest

_NOBODY: Final[Mapping[int, int]] = {}


def block_sizes(request: SimRequest) -> Iterator[tuple[int, int]]:
    """Each block of a prompt with its tokens; the last one may be part-filled."""
    left = request.prompt_tokens
    for block in request.blocks:
        yield block, min(BLOCK_TOKENS, left)
        left -= BLOCK_TOKENS


class PrefixIndex:
    """A prefix tree of blocks: since a block's id stands for its whole prefix, two tables do.

    The peers' trees hold characters; a block of a trace is 512 tokens of them.
    """

    def __init__(self, *, most_tokens: int | None = None) -> None:
        """Forget the least recently used blocks of an instance beyond ``most_tokens`` at once."""
        self._most_tokens = most_tokens
        self._holders: dict[int, dict[int, int]] = {}
        self._blocks: dict[int, OrderedDict[int, int]] = {}
        self._tokens: dict[int, int] = {}

    def holders(self, block: int) -> Mapping[int, int]:
        """The instances that got a block, the first that did first, and the block's tokens."""
        return self._holders.get(block, _NOBODY)

    def tokens(self, instance: int) -> int:
        """Tokens of all that an instance got and that is not forgotten."""
        return self._tokens.get(instance, 0)

    def depth(self, blocks: Sequence[int]) -> int:
        """How many blocks, from the first on, some instance got."""
        for index, block in enumerate(blocks):
            if not self._holders.get(block):
                return index
        return len(blocks)

    def insert(self, sizes: Sequence[tuple[int, int]], instance: int) -> None:
        """Note that an instance got these blocks, (id, tokens) each."""
        recent = self._blocks.setdefault(instance, OrderedDict())
        for block, tokens in sizes:
            if block in recent:
                recent.move_to_end(block)
            else:
                recent[block] = tokens
                self._holders.setdefault(block, {})[instance] = tokens
                self._tokens[instance] = self._tokens.get(instance, 0) + tokens
        if self._most_tokens is not None:
            self.shrink(instance, self._most_tokens)

    def shrink(self, instance: int, most_tokens: int) -> None:
        """Forget the least recently used blocks of an instance until so many tokens are left."""
        recent = self._blocks.get(instance)
        while recent and self._tokens[instance] > most_tokens:
            block, tokens = recent.popitem(last=False)
            self._tokens[instance] -= tokens
            self._forget(block, instance)

    def remove(self, instance: int) -> None:
        """Forget all about an instance."""
        self._tokens.pop(instance, None)
        for block in self._blocks.pop(instance, ()):
            self._forget(block, instance)

    def _forget(self, block: int, instance: int) -> None:
        holders = self._holders[block]
        del holders[instance]
        if not holders:
            del self._holders[block]
