"""Prompts with the measured score of several models, as requests for a fleet of several pools.

The scores are real; lengths of answers are not published with them. So they are modelled: the
median of the task, times a log-normal factor of the prompt that all models share and one of each
model, whose spreads are fitted on real answers of two models to the same prompts.
"""

from __future__ import annotations

import csv
import json
import math
import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pointsman_serving.simulator.request import SimRequest
from pointsman_serving.simulator.workloads.reading import TraceError, read_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_BYTES_PER_TOKEN: Final = 4
_MEAN_OUTPUT_TOKENS: Final = 168.0
_MOST_OUTPUT_TOKENS: Final = 2_048
_MEDIAN_TOKENS: Final = {
    "agentverse-logicgrid": 320,
    "agentverse-mgsm": 150,
    "arc_challenge": 90,
    "commongen": 60,
    "commonsense_qa": 70,
    "gpqa": 330,
    "gsm8k": 130,
    "human_eval": 190,
    "math": 340,
    "mbpp": 130,
    "mmlu": 120,
    "natural_qa": 70,
    "openbook_qa": 80,
    "trivia_qa": 40,
}
"""Of the answers to each task; the mean of all is scaled to 168 tokens afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt:
    """A prompt, its task, and the score of each model's answer."""

    task: str
    prompt: str
    scores: Mapping[str, float]
    """By model, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSpread:
    """Standard deviations of the logarithm of an answer's length."""

    shared: float = 0.37
    """Of the part that all models' answers to a prompt have in common."""
    own: float = 0.34
    """Of each model's own part."""


def load_scores(path: Path) -> list[ScoredPrompt]:
    """Read a JSONL of ``{"task", "prompt", "scores": {model: score}}``.

    Raises:
        TraceError: a line is not such an object, or a score is not between 0 and 1.
    """
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            entry: Any = json.loads(line)
        except ValueError as error:
            raise TraceError(path, number, "", f"is not JSON ({error})") from error
        if not isinstance(entry, dict):
            raise TraceError(path, number, "", f"is a {type(entry).__name__}; give one object")
        for name in ("task", "prompt"):
            if not isinstance(entry.get(name), str) or not entry[name]:
                raise TraceError(path, number, name, f"is {entry.get(name)!r}; give a text")
        scores = entry.get("scores")
        if not isinstance(scores, dict) or not scores:
            raise TraceError(path, number, "scores", f"is {scores!r}; give a score for each model")
        for model, score in scores.items():
            if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
                raise TraceError(
                    path, number, f"scores[{model}]", f"is {score!r}; give a number from 0 to 1"
                )
        found.append(ScoredPrompt(task=entry["task"], prompt=entry["prompt"], scores=scores))
    return found


def fit_length_spread(path: Path) -> LengthSpread:
    """Fit on a CSV with the answers of two models to the same prompts, in ``…_response`` columns.

    Raises:
        TraceError: there are not two such columns, or fewer than two rows.
    """
    # With the ends of the lines: an answer has several.
    rows = list(csv.DictReader([f"{line}\n" for line in read_lines(path)]))
    columns = [name for name in (rows[0] if rows else {}) if name.endswith("_response")]
    if len(columns) != 2 or len(rows) < 2:
        raise TraceError(
            path,
            1,
            "",
            f"has {len(rows)} rows and the columns {columns} that end in _response; give the "
            "answers of two models to two prompts at least",
        )
    first, second = (
        [math.log(max(1, len(row[column] or ""))) for row in rows] for column in columns
    )
    shared = max(0.0, statistics.covariance(first, second))
    variance = (statistics.variance(first) + statistics.variance(second)) / 2
    return LengthSpread(shared=math.sqrt(shared), own=math.sqrt(max(0.0, variance - shared)))


def scored_requests(
    prompts: Sequence[ScoredPrompt],
    models: Mapping[str, str],
    *,
    spread: LengthSpread | None = None,
    seed: int = 0,
) -> list[SimRequest]:
    """A request for each prompt, in shuffled order and all at 0 seconds: see ``arriving``.

    Args:
        models: which model's scores stand for each pool's.

    Raises:
        ValueError: a prompt has no score of one of the models.
    """
    source = random.Random(seed)
    spread = spread or LengthSpread()
    lengths = []
    for each in prompts:
        missing = [model for model in models.values() if model not in each.scores]
        if missing:
            raise ValueError(
                f"a prompt of task {each.task!r} has no score of {missing[0]!r}; "
                f"it has those of {sorted(each.scores)}"
            )
        median = _MEDIAN_TOKENS.get(each.task, statistics.median(_MEDIAN_TOKENS.values()))
        common = median * math.exp(source.gauss(0.0, spread.shared))
        lengths.append({pool: common * math.exp(source.gauss(0.0, spread.own)) for pool in models})
    mean = statistics.fmean(length for each in lengths for length in each.values())
    scale = _MEAN_OUTPUT_TOKENS / mean
    order = list(range(len(prompts)))
    source.shuffle(order)
    requests = []
    for number in order:
        each = prompts[number]
        tokens = {
            pool: min(_MOST_OUTPUT_TOKENS, max(1, round(scale * length)))
            for pool, length in lengths[number].items()
        }
        requests.append(
            SimRequest(
                request_id=f"q{number}",
                arrival_seconds=0.0,
                prompt_tokens=max(1, len(each.prompt.encode()) // _BYTES_PER_TOKEN),
                output_tokens=max(tokens.values()),
                task=each.task,
                prompt=each.prompt,
                quality_by_pool={pool: each.scores[model] for pool, model in models.items()},
                output_tokens_by_pool=tokens,
            )
        )
    return requests
