from __future__ import annotations

import json
import math
import random
from pathlib import Path
from statistics import correlation, fmean, pstdev

import pytest

from pointsman_serving.simulator.arms import ArmContext
from pointsman_serving.simulator.arms.prediction import TESTBED_TIERS, TruePredictor
from pointsman_serving.simulator.catalog import parse_arm
from pointsman_serving.simulator.experiment import pool_facts
from pointsman_serving.simulator.measure import measure
from pointsman_serving.simulator.simulation import Simulation
from pointsman_serving.simulator.testbed import MODELS, routebalance_testbed
from pointsman_serving.simulator.workloads.arrivals import arriving, poisson
from pointsman_serving.simulator.workloads.reading import TraceError
from pointsman_serving.simulator.workloads.scored import (
    LengthSpread,
    ScoredPrompt,
    fit_length_spread,
    load_scores,
    scored_requests,
)

LINE = {"task": "math", "prompt": "1 + 1 = ?", "scores": {"a": 1.0, "b": 0}}


def prompts(count: int) -> list[ScoredPrompt]:
    source = random.Random(5)
    tasks = ("gsm8k", "math", "trivia_qa", "mmlu")
    return [
        ScoredPrompt(
            task=source.choice(tasks),
            prompt="x" * source.randint(40, 4000),
            scores={model: source.random() for model in MODELS.values()},
        )
        for _ in range(count)
    ]


def test_scores_are_read_when_a_prompt_holds_strange_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    odd = json.dumps({**LINE, "prompt": "a\u2028b"}, ensure_ascii=False)
    path.write_text(f"{json.dumps(LINE)}\r\n{odd}\n")

    first, second = load_scores(path)

    assert ("math", {"a": 1.0, "b": 0}) == (first.task, first.scores)
    assert "a\u2028b" == second.prompt


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        ("{", "", "is not JSON"),
        ("3", "", "is a int; give one object"),
        (json.dumps({**LINE, "task": ""}), "task", "is ''; give a text"),
        (json.dumps({"task": "math"}), "prompt", "is None; give a text"),
        (json.dumps({**LINE, "scores": []}), "scores", "is []; give a score for each model"),
        (json.dumps({**LINE, "scores": {"a": 1.5}}), "scores[a]", "is 1.5; give a number from 0"),
        (json.dumps({**LINE, "scores": {"a": math.nan}}), "scores[a]", "is nan; give a number"),
        (json.dumps({**LINE, "scores": {"a": True}}), "scores[a]", "is True; give a number"),
    ],
)
def test_score_line_is_named_when_it_is_wrong(
    tmp_path: Path, line: str, field: str, message: str
) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{line}\n")

    with pytest.raises(TraceError) as caught:
        load_scores(path)

    assert (2, field) == (caught.value.line, caught.value.field)
    assert message in str(caught.value)


def test_spread_of_lengths_is_found_again_when_it_is_fitted(tmp_path: Path) -> None:
    source = random.Random(1)
    rows = ["a_response,b_response"]
    for _ in range(3000):
        shared = source.gauss(5.5, 0.4)
        rows.append(",".join("x" * round(math.exp(shared + source.gauss(0, 0.3))) for _ in "ab"))
    path = tmp_path / "answers.csv"
    path.write_text("\n".join(rows))

    spread = fit_length_spread(path)

    assert (spread.shared, spread.own) == pytest.approx((0.4, 0.3), abs=0.02)


def test_answers_are_named_when_there_is_only_one_model(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("a_response,b\nx,y\n")

    with pytest.raises(TraceError, match=r"the columns \['a_response'\]"):
        fit_length_spread(path)


def test_lengths_have_the_stated_mean_and_spread() -> None:
    requests = scored_requests(prompts(4000), MODELS, spread=LengthSpread(shared=0.4, own=0.3))

    lengths = [each.output_tokens_by_pool for each in requests]
    assert fmean(tokens for each in lengths for tokens in each.values()) == pytest.approx(
        168, rel=0.02
    )
    of_math = [each.output_tokens_by_pool for each in requests if each.task == "math"]
    small, large = ([math.log(each[pool]) for each in of_math] for pool in ("3b", "72b"))
    assert pstdev(small) == pytest.approx(0.5, abs=0.03)
    assert correlation(small, large) == pytest.approx(0.16 / 0.25, abs=0.05)
    assert max(tokens for each in lengths for tokens in each.values()) <= 2048


def test_prompt_is_refused_when_a_model_has_no_score() -> None:
    with pytest.raises(ValueError, match="has no score of 'c'; it has those of"):
        scored_requests([ScoredPrompt(task="math", prompt="x", scores={"a": 1.0})], {"p": "c"})


def test_testbed_is_what_the_arms_are_told() -> None:
    groups = routebalance_testbed()

    facts = pool_facts(groups)

    assert 13 == sum(group.count for group in groups)
    for pool, told in TESTBED_TIERS.items():
        assert facts[pool].tpot_seconds == pytest.approx(told.tpot_seconds)
        assert facts[pool].rank == pytest.approx(told.rank)
        assert facts[pool].dollars(1000, 100) == pytest.approx(told.dollars(1000, 100))


def test_quality_and_dollars_are_those_of_the_models_that_answered() -> None:
    groups = routebalance_testbed()
    facts = pool_facts(groups)
    context = ArmContext(pools=facts, predictor=TruePredictor(facts))
    requests = arriving(scored_requests(prompts(400), MODELS), poisson(3.0, random.Random(2)))

    best, cheap = (
        measure(Simulation(groups, [parse_arm(arm).make(context)], requests).run(),
                ttft_slo_seconds=5.0)
        for arm in ("oracle:seconds_weight=0.0,dollars_weight=0.0", "oracle:dollars_weight=1e9")
    )  # fmt: skip

    most = fmean(max(each.quality_by_pool.values()) for each in requests)
    assert best.quality == pytest.approx(most)
    least = fmean(
        min(
            told.dollars(each.prompt_tokens, each.output_tokens_by_pool[pool])
            for pool, told in facts.items()
        )
        for each in requests
    )
    assert cheap.dollars_per_thousand == pytest.approx(1000 * least)
