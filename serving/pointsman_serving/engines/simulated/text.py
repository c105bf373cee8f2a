"""Tokens and words of a simulated engine: reversible tokens, text that follows from its prefix.

A token is up to four bytes of one word with the space before it, so that text comes out near
the four bytes a token of real tokenizers; its id is those bytes, so that no vocabulary is kept.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import sys
from array import array
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TOKEN_BYTES = 4
_PIECE = re.compile(r" ?\S+|\s")
# Ids of n-byte tokens start where those of the shorter ones end.
_FIRST_ID = (0, 0, 2**8, 2**8 + 2**16, 2**8 + 2**16 + 2**24)
TOKEN_COUNT = _FIRST_ID[TOKEN_BYTES] + 2 ** (8 * TOKEN_BYTES)
"""Ids are below this."""
END_TOKEN = ord("\n")
"""Ends an answer. It is what the chat template puts behind a message, so that an answer and its
end are found in the cache by the next turn."""

# Three letters at most: with its space each word is one token, and text that comes back in a
# later prompt becomes the same tokens again.
_WORD_LIST = (
    "the and for are but not you all any can had her was one our out day get has him his how "
    "man new now old see two way who boy did its let put say she too use red sun sea sky ice "
    "map key bus car van row run sit ask add aim air arm art bag bar bed bit box cab cap cup "
    "cut dry due ear eat egg end eye fan far few fit fly fog fox fun gas hat hay hot hub ink "
    "inn jam jar job joy kit lab law leg lid log lot low mix mud net nod oak oar oil own pan "
    "pay pen pie pin pit pot raw rim rod sad saw set six tap tax tea ten tie tin tip toe top "
    "toy try tug war wax web wet win yes yet zoo a an as at be by do go he if in is it me my "
    "no of on or so to up us we"
)
WORDS = tuple(_WORD_LIST.split())


def tokenize(text: str) -> list[int]:
    """Token ids of a text; :func:`detokenize` gives it back."""
    tokens: list[int] = []
    for piece in _PIECE.findall(text):
        data = piece.encode("utf-8", "surrogatepass")
        tokens.extend(
            _token_of(data[start : start + TOKEN_BYTES])
            for start in range(0, len(data), TOKEN_BYTES)
        )
    return tokens


def _token_of(data: bytes) -> int:
    return _FIRST_ID[len(data)] + int.from_bytes(data, "big")


def token_bytes(token: int) -> bytes:
    """The bytes that a token stands for.

    Raises:
        ValueError: no token has this id.
    """
    if not 0 <= token < TOKEN_COUNT:
        raise ValueError(f"token id {token} is not known: ids are 0 to {TOKEN_COUNT - 1}")
    length = max(size for size in range(1, TOKEN_BYTES + 1) if token >= _FIRST_ID[size])
    return (token - _FIRST_ID[length]).to_bytes(length, "big")


def detokenize(tokens: Iterable[int]) -> str:
    """The text of these tokens; bytes that are no UTF-8 become U+FFFD.

    Raises:
        ValueError: an id that no token has.
    """
    return b"".join(map(token_bytes, tokens)).decode("utf-8", "replace")


def token_texts(tokens: Sequence[int]) -> list[str]:
    """The text of each token; a character comes with its last byte, what is none as U+FFFD.

    Raises:
        ValueError: an id that no token has.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    final = len(tokens) - 1
    return [
        decoder.decode(token_bytes(token), index == final) for index, token in enumerate(tokens)
    ]


def render_chat(
    messages: Sequence[Mapping[str, object]],
    *,
    tools: object = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> str:
    """The prompt of a conversation, in the order of usual templates: tools, then the messages."""
    parts: list[str] = []
    if tools:
        parts.append(f"<|tools|>\n{_canonical(tools)}\n")
    for message in messages:
        text = _content_text(message.get("content"))
        calls = message.get("tool_calls")
        if calls:
            text += _canonical(calls)
        parts.append(f"<|{message.get('role')}|>\n{text}\n")
    if continue_final_message:
        parts[-1] = parts[-1][:-1]
    elif add_generation_prompt:
        parts.append("<|assistant|>\n")
    return "".join(parts)


def _content_text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return _canonical(content)
    texts: list[str] = []
    for part in content:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:  # media: only its identity counts
            digest = xxhash.xxh3_64_hexdigest(_canonical(part).encode("utf-8", "surrogatepass"))
            texts.append(f"<|{part.get('type') if isinstance(part, dict) else 'part'} {digest}|>")
    return "".join(texts)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def block_hashes(tokens: Sequence[int], block_tokens: int, *, salt: str = "") -> tuple[int, ...]:
    """Hash of each full block over all tokens up to its end; other salts share nothing."""
    data = array("Q", tokens).tobytes()
    size = block_tokens * 8
    chain = xxhash.xxh3_64_digest(salt.encode("utf-8", "surrogatepass"))
    hashes: list[int] = []
    for start in range(0, len(tokens) // block_tokens * size, size):
        chain = xxhash.xxh3_64_digest(chain + data[start : start + size])
        hashes.append(int.from_bytes(chain, "big"))
    return tuple(hashes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthModel:
    """How long answers are that nothing cuts: log-normal."""

    mean_tokens: float = 128.0
    sigma: float = 0.7
    """Standard deviation of the logarithm; 0: all answers have the mean length."""

    def __post_init__(self) -> None:
        """Refuse what is no length.

        Raises:
            ValueError: a mean below 1 token, or a negative spread.
        """
        if not 1 <= self.mean_tokens < math.inf:
            raise ValueError(f"mean_tokens is {self.mean_tokens}: give tokens, 1 or more")
        if not 0 <= self.sigma <= 5:
            raise ValueError(f"sigma is {self.sigma}: give 0 (no spread) to 5")

    def draw(self, prompt: Sequence[int], seed: int) -> int:
        """Tokens of the answer to this prompt, 1 or more; the same for the same arguments."""
        digest = xxhash.xxh3_64_intdigest(array("Q", prompt).tobytes(), seed ^ 0x6C656E677468)
        z = NormalDist().inv_cdf(((digest >> 12) + 0.5) / 2**52)
        spread = math.exp(self.sigma * z - self.sigma**2 / 2)
        return max(1, round(self.mean_tokens * spread))


def continue_tokens(prompt: Sequence[int], count: int, seed: int) -> list[int]:
    """The next tokens; each follows from all tokens before it and the seed.

    So a prompt with the beginning of its own answer is continued by the rest of that answer.
    """
    state = xxhash.xxh3_64(array("Q", prompt).tobytes(), seed)
    glue = b"" if not prompt or token_bytes(prompt[-1])[-1:] in (b"\n", b" ") else b" "
    tokens: list[int] = []
    for _ in range(count):
        word = WORDS[state.intdigest() % len(WORDS)].encode()
        token = _token_of(glue + word)
        tokens.append(token)
        state.update(token.to_bytes(8, sys.byteorder))
        glue = b" "
    return tokens


def seed_of(*parts: object) -> int:
    """One 64-bit seed out of several values."""
    return xxhash.xxh3_64_intdigest("\x1f".join(map(str, parts)).encode())
