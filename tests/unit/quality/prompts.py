"""Prompts of three made-up tasks, and scores of three made-up models on them."""

from __future__ import annotations

import functools
import json
import random

from pointsman_serving.quality.fit import fit
from pointsman_serving.quality.predictor import Weights
from pointsman_serving.quality.scores import ScoreTable, read_scores

TRAINED_AT = "2026-11-01T00:00:00+00:00"
SKILLS = {
    "code": {"coder": 0.9, "writer": 0.2, "small": 0.1},
    "prose": {"coder": 0.3, "writer": 0.9, "small": 0.5},
    "sums": {"coder": 0.7, "writer": 0.6, "small": 0.3},
}
_TEMPLATES = {
    "code": "def {a}_{b}(x): # complete this function so that it returns the {c}",
    "prose": "Write a short letter to {a} about the {b} and the {c}, in a warm tone.",
    "sums": "If {a} has {n} apples and {b} takes {m} of them, how many does the {c} leave?",
}
_WORDS = ("river", "stone", "Anna", "Paul", "garden", "engine", "paper", "cloud", "lamp", "bird")


def prompt(task: str, seed: int) -> str:
    draw = random.Random(f"{task}{seed}")
    words = {name: draw.choice(_WORDS) for name in "abc"}
    return _TEMPLATES[task].format(**words, n=draw.randrange(99), m=draw.randrange(99)) + str(seed)


def score_lines(
    each: int = 60, *, labelled: bool = True, tasks: tuple[str, ...] = tuple(SKILLS)
) -> list[bytes]:
    draw = random.Random(0)
    lines = []
    for number in range(each):
        for task in tasks:
            scores = {model: float(draw.random() < skill) for model, skill in SKILLS[task].items()}
            row = {
                "task": task if labelled else "Default",
                "prompt": prompt(task, number),
                "scores": scores,
            }
            lines.append(json.dumps(row).encode())
    return lines


def score_table(each: int = 60, *, labelled: bool = True) -> ScoreTable:
    return read_scores(score_lines(each, labelled=labelled), "scores.jsonl")


@functools.cache
def fitted(*, labelled: bool = True) -> Weights:
    return fit(score_table(labelled=labelled), trained_at=TRAINED_AT, table_bits=12)
