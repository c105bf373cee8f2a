"""What a simulated engine answers: words that follow from the prompt, and why they end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pointsman_serving.engines.openai_errors import ApiError
from pointsman_serving.engines.simulated.text import END_TOKEN, continue_tokens, token_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pointsman_serving.engines.simulated.text import LengthModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A text, token by token, and why it ends."""

    tokens: list[int]
    pieces: list[str]
    finish_reason: str
    stop_reason: str | None = None


def write_answer(
    body: Mapping[str, object],
    prompt: Sequence[int],
    written: int,
    sent: Sequence[int],
    limit: int,
    seed: int,
    lengths: LengthModel,
) -> Answer:
    """The whole answer to a prompt.

    Args:
        body: what was asked for.
        prompt: token ids.
        written: how many of the prompt's last tokens are the beginning of the answer.
        sent: the answer's first tokens, which another engine has sent already.
        limit: how many tokens the answer may have; not less than were sent.
        seed: what the words follow from, beside the tokens before them.
        lengths: how long answers are that nothing cuts.

    Raises:
        ApiError: ``min_tokens`` or ``stop`` is of the wrong form.
    """
    if body.get("ignore_eos"):
        count, ends = limit, False
    elif sent and sent[-1] == END_TOKEN:
        count, ends = len(sent), True
    else:
        # An answer that goes on from its own beginning ends where it would have ended.
        drawn = lengths.draw(prompt[: len(prompt) - written], seed) - written
        drawn = max(drawn, integer_of(body, "min_tokens") or 0, len(sent) + 1)
        count, ends = min(drawn, limit), drawn <= limit
    tokens = [*sent, *continue_tokens([*prompt, *sent], count - len(sent), seed)]
    if ends:
        tokens[-1] = END_TOKEN
    pieces = token_texts(tokens[:-1] if ends else tokens)
    if ends:  # the end token counts, and has no text
        pieces.append("")
    keep = bool(body.get("include_stop_str_in_output"))
    cut = _cut_at_stop(pieces, _stop_strings(body), keep=keep)
    if cut is not None:
        pieces, stop = cut
        tokens = tokens[: len(pieces)]
        return Answer(tokens=tokens, pieces=pieces, finish_reason="stop", stop_reason=stop)
    return Answer(tokens=tokens, pieces=pieces, finish_reason="stop" if ends else "length")


def integer_of(body: Mapping[str, object], name: str) -> int | None:
    """A field that is a whole number; None where it is absent.

    Raises:
        ApiError: it is something else.
    """
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ApiError(f"{name} must be a whole number, got {json.dumps(value)}.", param=name)
    return value


def _stop_strings(body: Mapping[str, object]) -> list[str]:
    stop = body.get("stop")
    texts = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ApiError(
            f"stop must be a text or a list of texts, none empty, got {json.dumps(stop)}.",
            param="stop",
        )
    return texts


def _cut_at_stop(
    pieces: Sequence[str], stops: Sequence[str], *, keep: bool
) -> tuple[list[str], str] | None:
    """The pieces up to the first stop string, and which it was; None where there is none."""
    if not stops:
        return None
    text = ""
    for count, piece in enumerate(pieces, start=1):
        text += piece
        found = [(text.find(stop), stop) for stop in stops if stop in text]
        if found:
            at, stop = min(found)
            return _cut_to(pieces[:count], at + len(stop) if keep else at), stop
    return None


def _cut_to(pieces: Sequence[str], length: int) -> list[str]:
    """The same number of pieces with this many characters in all."""
    cut: list[str] = []
    for piece in pieces:
        cut.append(piece[:length])
        length -= len(cut[-1])
    return cut
