"""Avengers-Pro's table: prompts in clusters, and how each model does in each of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

DIMENSIONS: Final = 1024
_WORD: Final = re.compile(r"\w+")
_ROUNDS: Final = 25


class Profile(NamedTuple):
    """A model in a cluster, both from 0 (least of its models) to 1 (most)."""

    performance: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A prompt of the training data."""

    prompt: str
    quality_by_pool: Mapping[str, float]
    dollars_by_pool: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTable:
    """The centres of the clusters, of length 1, and the models' profiles in each."""

    centres: Sequence[Sequence[float]]
    profiles: Sequence[Mapping[str, Profile]]

    def nearest(self, prompt: str, count: int) -> list[tuple[float, int]]:
        """The distances (1 − cosine) and numbers of the nearest clusters, nearest first."""
        vector = embed(prompt)
        distances = [
            (1 - sum(value * centre[place] for place, value in vector.items()), number)
            for number, centre in enumerate(self.centres)
        ]
        return sorted(distances)[:count]


def embed(prompt: str) -> dict[int, float]:
    """Words and pairs of words, hashed, of length 1; empty without any.

    Stands in for the published embedding model, which no simulation should need.
    """
    words = _WORD.findall(prompt.lower())
    counts: dict[int, float] = {}
    for gram in (*words, *(f"{one} {two}" for one, two in pairwise(words))):
        place = xxh3_64_intdigest(gram.encode("utf-8", "surrogatepass")) % DIMENSIONS
        counts[place] = counts.get(place, 0.0) + 1.0
    vector = {place: math.log1p(count) for place, count in counts.items()}
    length = math.sqrt(sum(value * value for value in vector.values()))
    return {place: value / length for place, value in vector.items()}


def fit_clusters(scored: Sequence[Scored], *, count: int = 60, seed: int = 0) -> ClusterTable:
    """K-means over the prompts' embeddings, and the models' normalised means in each cluster.

    Raises:
        ValueError: fewer prompts than clusters, or prompts that were scored on different models.
    """
    if len(scored) < count:
        raise ValueError(
            f"{len(scored)} prompts cannot fill {count} clusters: give more, or fewer clusters"
        )
    pools = set(scored[0].quality_by_pool)
    for each in scored:
        if set(each.quality_by_pool) != pools or set(each.dollars_by_pool) != pools:
            raise ValueError(
                f"prompt {each.prompt[:40]!r} is scored on {sorted(each.quality_by_pool)} and "
                f"the first one on {sorted(pools)}: score all of them on the same models"
            )
    vectors = [embed(each.prompt) for each in scored]
    centres = [_dense(vectors[index]) for index in Random(seed).sample(range(len(scored)), count)]
    owners = [-1] * len(vectors)
    for _ in range(_ROUNDS):
        changed = False
        for index, vector in enumerate(vectors):
            owner = _closest(vector, centres)
            changed |= owner != owners[index]
            owners[index] = owner
        if not changed:
            break
        centres = _means(vectors, owners, centres)
    overall = _profile(scored, sorted(pools))
    profiles = []
    for number in range(count):
        members = [each for each, owner in zip(scored, owners, strict=True) if owner == number]
        profiles.append(_profile(members, sorted(pools)) if members else overall)
    return ClusterTable(centres=centres, profiles=profiles)


def _dense(vector: Mapping[int, float]) -> list[float]:
    dense = [0.0] * DIMENSIONS
    for place, value in vector.items():
        dense[place] = value
    return dense


def _closest(vector: Mapping[int, float], centres: Sequence[Sequence[float]]) -> int:
    items = list(vector.items())
    products = [sum(value * centre[place] for place, value in items) for centre in centres]
    return products.index(max(products))


def _means(
    vectors: Sequence[Mapping[int, float]],
    owners: Sequence[int],
    centres: Sequence[Sequence[float]],
) -> list[list[float]]:
    sums = [[0.0] * DIMENSIONS for _ in centres]
    for vector, owner in zip(vectors, owners, strict=True):
        for place, value in vector.items():
            sums[owner][place] += value
    means: list[list[float]] = []
    for total, centre in zip(sums, centres, strict=True):
        length = math.sqrt(sum(value * value for value in total))
        means.append([value / length for value in total] if length else list(centre))
    return means


def _profile(scored: Sequence[Scored], pools: Sequence[str]) -> dict[str, Profile]:
    qualities = [sum(each.quality_by_pool[pool] for each in scored) for pool in pools]
    dollars = [sum(each.dollars_by_pool[pool] for each in scored) for pool in pools]
    return {
        pool: Profile(performance, cost)
        for pool, performance, cost in zip(
            pools, _normalised(qualities), _normalised(dollars), strict=True
        )
    }


def _normalised(values: Sequence[float]) -> list[float]:
    low, spread = min(values), max(values) - min(values)
    return [(value - low) / spread if spread else 0.5 for value in values]
