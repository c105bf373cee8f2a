"""From token ids to text as it comes, cut at stop strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenizers import Tokenizer


class StopFilter:
    """Passes text on and ends at the first stop string, which is left out.

    What could be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that may be shown now; nothing after a stop string."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, at the end."""
        shown, self._held = self._held, ""
        return shown


class Detokenizer:
    """Text of a growing list of tokens; a character comes with its last token."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        return self._filter.stopped

    def feed(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        shown = ""
        for token in token_ids:
            shown += self._filter.feed(self._stream.step(self._tokenizer, token) or "")
        return shown

    def flush(self) -> str:
        """What is left at the end of the answer."""
        return self._filter.flush()


def _overlap(text: str, stop: str) -> int:
    # The longest end of the text that is a beginning of the stop string.
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
