"""Measured scores of models on prompts, from JSONL: what a predictor is trained on.

One object a line: ``{"task": "gsm8k", "prompt": "…", "scores": {"qwen2.5-7b": 1.0, "…": 0.3}}``.
Scores are from 0 to 1. A line may leave models out; further fields are ignored.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

MOST_ERRORS: Final = 20
"""After that many the rest of the file is not read."""
_SHOWN_CHARACTERS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreError:
    """One thing that is wrong with a file of scores."""

    path: str
    line: int
    """From 1; 0: the whole file."""
    field: str
    """Such as ``scores.qwen2.5-7b``; empty: the whole line."""
    message: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return (
            f"{where}: {self.field}: {self.message}" if self.field else f"{where}: {self.message}"
        )


class ScoreFileError(ValueError):
    """A file of scores that cannot be used; ``errors`` has every finding."""

    def __init__(self, errors: tuple[ScoreError, ...]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreTable:
    """N prompts of T tasks, scored for M models."""

    models: tuple[str, ...]
    """Sorted."""
    tasks: tuple[str, ...]
    """Sorted."""
    prompts: tuple[str, ...]
    task_of: NDArray[np.int64]
    """[N]: index into ``tasks``."""
    scores: NDArray[np.float64]
    """[N, M]; NaN where a model was not scored."""

    def take(self, rows: NDArray[np.int64]) -> ScoreTable:
        """Some of the prompts; models and tasks keep their places."""
        return ScoreTable(
            models=self.models,
            tasks=self.tasks,
            prompts=tuple(self.prompts[row] for row in rows.tolist()),
            task_of=self.task_of[rows],
            scores=self.scores[rows],
        )


def read_scores(lines: Iterable[bytes], path: str) -> ScoreTable:
    """Read lines of JSON.

    Args:
        path: the file's name, for errors.

    Raises:
        ScoreFileError: with line and field, of the first ``MOST_ERRORS`` things that are wrong.
    """
    reader = _Reader(path)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            reader.read(number, line)
        if len(reader.errors) >= MOST_ERRORS:
            break
    if not reader.errors and not reader.prompts:
        reader.wrong(0, "", "holds no scores; give one JSON object a line: " + _EXAMPLE)
    if reader.errors:
        raise ScoreFileError(tuple(reader.errors))
    return reader.table()


_EXAMPLE: Final = '{"task": "math", "prompt": "What is 2+2?", "scores": {"some-model": 1.0}}'


class _RepeatedNameError(ValueError):
    pass


class _Reader:
    def __init__(self, path: str) -> None:
        self._path = path
        self.errors: list[ScoreError] = []
        self.prompts: list[str] = []
        self._tasks: list[str] = []
        self._scores: list[dict[str, float]] = []
        self._lines: dict[str, int] = {}

    def wrong(self, line: int, field: str, message: str) -> None:
        self.errors.append(ScoreError(path=self._path, line=line, field=field, message=message))

    def read(self, number: int, line: bytes) -> None:
        try:
            row = json.loads(line, object_pairs_hook=_distinct)
        except _RepeatedNameError as error:
            self.wrong(number, str(error), "is stated twice; keep one of them")
            return
        except UnicodeDecodeError as error:
            self.wrong(number, "", f"is not UTF-8 (byte {error.start}); save the file as UTF-8")
            return
        except (ValueError, RecursionError) as error:
            self.wrong(number, "", f"is not JSON ({error}); give one object a line: {_EXAMPLE}")
            return
        if not isinstance(row, dict):
            self.wrong(number, "", f"is {_shown(row)}, not an object; such as {_EXAMPLE}")
            return
        before = len(self.errors)
        task = self._text(number, row, "task")
        prompt = self._text(number, row, "prompt")
        scores = self._numbers(number, row)
        if prompt and (first := self._lines.setdefault(prompt, number)) != number:
            self.wrong(
                number,
                "prompt",
                f"is that of line {first} again: {_shown(prompt)}; give each prompt once, with the "
                "mean of its scores",
            )
        if len(self.errors) == before:
            self.prompts.append(prompt)
            self._tasks.append(task)
            self._scores.append(scores)

    def _text(self, number: int, row: dict[str, object], field: str) -> str:
        if field not in row:
            self.wrong(number, field, "is missing")
            return ""
        value = row[field]
        if not isinstance(value, str):
            self.wrong(number, field, f"is {_shown(value)}, not a string")
            return ""
        if not value.strip():
            self.wrong(number, field, "is empty")
            return ""
        return value

    def _numbers(self, number: int, row: dict[str, object]) -> dict[str, float]:
        scores = row.get("scores")
        if "scores" not in row:
            self.wrong(number, "scores", "is missing")
            return {}
        if not isinstance(scores, dict):
            self.wrong(number, "scores", f'is {_shown(scores)}, not an object {{"model": score}}')
            return {}
        if not scores:
            self.wrong(number, "scores", "is empty; leave the line out or score one model")
        for model, score in scores.items():
            field = f"scores.{model}"
            if not model.strip():
                self.wrong(number, "scores", "has a model without a name")
            elif isinstance(score, bool) or not isinstance(score, int | float):
                self.wrong(number, field, f"is {_shown(score)}; scores are numbers from 0 to 1")
            elif score != score:
                self.wrong(number, field, "is NaN; leave a model out that was not scored")
            elif not 0 <= score <= 1:
                self.wrong(
                    number, field, f"is {_shown(score)}; scores are from 0 (wrong) to 1 (right)"
                )
        return scores

    def table(self) -> ScoreTable:
        models = tuple(sorted({model for scores in self._scores for model in scores}))
        tasks = tuple(sorted(set(self._tasks)))
        place = {task: index for index, task in enumerate(tasks)}
        nothing = math.nan
        return ScoreTable(
            models=models,
            tasks=tasks,
            prompts=tuple(self.prompts),
            task_of=np.array([place[task] for task in self._tasks], np.int64),
            scores=np.array(
                [[scores.get(model, nothing) for model in models] for scores in self._scores],
                np.float64,
            ),
        )


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise _RepeatedNameError(name)
            seen.add(name)
    return row


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
