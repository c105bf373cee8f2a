"""Which token blocks a prompt's bytes stand for, learned from prompts whose token ids were seen.

No tokenizer and no template: where a replica has told the token ids of a prompt, its byte blocks
are remembered with the token blocks that they became. A later prompt that begins with the same
bytes begins with the same tokens. Where exactly a byte block ends among the tokens is taken in
proportion first, and set right by what prompts that part there turn out to share.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pointsman_serving.routing.types import Prompt

MAX_TOKEN_BLOCKS: Final = 262_144
"""Over all prompts of a pool; some 40 MB."""

# An alignment is taken to be wrong by no more than this; what differs earlier was tokenised
# otherwise, such as by another template.
_SLACK_BLOCKS: Final = 8
_SLACK_SHARE: Final = 0.25


class Tail(NamedTuple):
    """What followed a prompt's last whole byte block, for prompts that go on from there."""

    root: int
    total_bytes: int
    blocks: array[int]


class _Node:
    """One byte block: the token blocks that end in it."""

    __slots__ = ("blocks", "end", "next", "tail")

    def __init__(self, end: int, blocks: array[int]) -> None:
        self.end = end
        """Token blocks of the prompt up to here."""
        self.blocks = blocks
        """The last of them: those that end in this byte block."""
        self.next: int | None = None
        """A byte block that was seen to follow."""
        self.tail: Tail | None = None

    @property
    def start(self) -> int:
        """Token blocks before this byte block."""
        return self.end - len(self.blocks)


class KnownChain(NamedTuple):
    """The token blocks of a prompt as far as they are known."""

    blocks: array[int]
    end_bytes: int
    """Bytes of the prompt that they cover."""
    block_tokens: int


class TokenChains:
    """The byte blocks of one pool's prompts.

    Args:
        max_token_blocks: bound; beyond it the prompts that were seen last longest ago go.
    """

    __slots__ = ("_max", "_nodes", "_size", "block_tokens")

    def __init__(self, *, max_token_blocks: int = MAX_TOKEN_BLOCKS) -> None:
        self._max = max_token_blocks
        self._size = 0
        self.block_tokens = 0
        """Tokens in a block; 0 until something is learned."""
        self._nodes: OrderedDict[int, _Node] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def token_blocks(self) -> int:
        """Token blocks that are kept, one more for each byte block."""
        return self._size

    def find(self, prompt: Prompt) -> KnownChain | None:
        """The token blocks of a prompt's known beginning; None where nothing is known."""
        nodes = self._nodes
        found = array("Q")
        end_bytes = 0
        last = None
        for name, end in prompt.blocks:
            node = nodes.get(name)
            if node is None:
                break
            _append(found, node.blocks, node.start)
            end_bytes = end
            last = node
        if last is None:
            return None
        tail = last.tail
        if tail and tail.root == prompt.root and tail.total_bytes <= prompt.total_bytes:
            _append(found, tail.blocks, last.end)
            end_bytes = tail.total_bytes
        return KnownChain(found, end_bytes, self.block_tokens)

    def learn(
        self, prompt: Prompt, blocks: Sequence[int], *, tokens: int, block_tokens: int
    ) -> None:
        """Take a prompt with the names of its token blocks.

        Args:
            blocks: of all its full token blocks, in order.
            tokens: how many the prompt has, those behind the last full block included.
            block_tokens: tokens in a block; where that has changed, all is learned anew.
        """
        if not prompt.blocks or not blocks:
            return
        if block_tokens != self.block_tokens:
            self._nodes.clear()
            self._size = 0
            self.block_tokens = block_tokens
        token_count = tokens / block_tokens
        chain = array("Q", blocks)
        known = self._agreeing(prompt, chain, token_count)
        self._extend(prompt, known, chain, token_count)
        self._add(prompt, len(known), chain, token_count)
        self._evict()

    def _agreeing(self, prompt: Prompt, chain: array[int], token_count: float) -> list[_Node]:
        """The known byte blocks whose token blocks are the chain's, once they are cut to them."""
        known: list[_Node] = []
        end = agreed = 0
        differs = False
        for name, end_bytes in prompt.blocks:
            node = self._nodes.get(name)
            if node is None:
                break
            if not differs:
                agreed = _agreed(node, chain)
                differs = agreed < node.end
            if differs:
                expected = token_count * end_bytes / prompt.total_bytes
                if agreed + max(_SLACK_BLOCKS, _SLACK_SHARE * expected) < expected:
                    # These bytes are other tokens than before: they are learned anew.
                    break
            start = min(node.start, end)
            end = max(end, min(node.end, agreed)) if differs else node.end
            self._resize(node, chain[start:end], end)
            known.append(node)
        return known

    def _extend(
        self, prompt: Prompt, known: list[_Node], chain: array[int], token_count: float
    ) -> None:
        """Where the prompt parts from others, what they share beyond is the last block's too."""
        if not known or len(known) == len(prompt.blocks):
            return
        node = known[-1]
        following = self._nodes.get(node.next) if node.next is not None else None
        shared = 0
        if following is not None and following.start == node.end:
            # Not farther than one byte block, or it would be another text's.
            start, end = prompt.blocks[len(known) - 1][1], prompt.blocks[len(known)][1]
            most = 1 + int((end - start) * token_count / prompt.total_bytes)
            for ours, theirs in zip(
                chain[node.end : node.end + most], following.blocks, strict=False
            ):
                if ours != theirs:
                    break
                shared += 1
        if shared:
            end = node.end + shared
            self._resize(node, node.blocks + chain[node.end : end], end)

    def _add(self, prompt: Prompt, known: int, chain: array[int], token_count: float) -> None:
        """Spread what is left of the chain over what is left of the byte blocks."""
        nodes = self._nodes
        names = prompt.blocks
        position, start_bytes = 0.0, 0
        at = 0
        previous = None
        if known:
            name, start_bytes = names[known - 1]
            previous = nodes[name]
            at = min(previous.end, len(chain))
            position = float(at)
        rate = max(0.0, token_count - position) / max(1, prompt.total_bytes - start_bytes)
        for name, end_bytes in names[known:]:
            end = min(len(chain), max(at, int(position + rate * (end_bytes - start_bytes))))
            node = nodes.get(name)
            if node is None:
                node = nodes[name] = _Node(0, array("Q"))
                self._size += 1
            self._set_tail(node, None)
            self._resize(node, chain[at:end], end)
            if previous is not None:
                previous.next = name
            previous = node
            at = end
        for name, _ in reversed(names):
            nodes.move_to_end(name)
        if previous is not None:
            self._set_tail(previous, Tail(prompt.root, prompt.total_bytes, chain[at:]))

    def _resize(self, node: _Node, blocks: array[int], end: int) -> None:
        self._size += len(blocks) - len(node.blocks)
        node.blocks = blocks
        node.end = end

    def _set_tail(self, node: _Node, tail: Tail | None) -> None:
        self._size += _length(tail) - _length(node.tail)
        node.tail = tail

    def _evict(self) -> None:
        while self._size > self._max and self._nodes:
            _, node = self._nodes.popitem(last=False)
            self._size -= 1 + len(node.blocks) + _length(node.tail)


def _append(found: array[int], blocks: array[int], start: int) -> None:
    """Put blocks behind those before ``start``; what is there already stays."""
    if not blocks:
        return
    missing = start - len(found)
    if missing > 0:
        # Of what lies between nothing is known: whoever has what follows has that as well.
        found.extend([blocks[0]] * missing)
        missing = 0
    found.extend(blocks[-missing:])


def _length(tail: Tail | None) -> int:
    return 0 if tail is None else len(tail.blocks)


def _agreed(node: _Node, chain: array[int]) -> int:
    """How many token blocks the chain shares with a byte block and all before it, which agree."""
    start = node.start
    if chain[start : node.end] == node.blocks:
        return node.end
    for at, (ours, theirs) in enumerate(zip(node.blocks, chain[start:], strict=False), start):
        if ours != theirs:
            return at
    return min(node.end, len(chain))
