"""Decisions worked out by hand: rules that choose the model, and what wraps and bounds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pointsman_serving.engines.timing import EngineProfile
from pointsman_serving.simulator.arm import (
    Dispatch,
    Failed,
    Finished,
    FirstToken,
    InstanceRemoved,
    Reject,
)
from pointsman_serving.simulator.arms.basic import LeastRequests
from pointsman_serving.simulator.arms.bounds import FusedOracle, pooled_profile
from pointsman_serving.simulator.arms.clusters import (
    ClusterTable,
    Profile,
    Scored,
    embed,
    fit_clusters,
)
from pointsman_serving.simulator.arms.dualmap import DualMap
from pointsman_serving.simulator.arms.model_routers import (
    AvengersPro,
    BestRoute,
    RouteLlm,
    logistic,
)
from pointsman_serving.simulator.arms.prediction import (
    TESTBED_TIERS,
    Prediction,
    PriorPredictor,
    TruePredictor,
)
from pointsman_serving.simulator.arms.rejecting import Rejecting
from pointsman_serving.simulator.arms.routebalance import RouteBalance
from pointsman_serving.simulator.arms.router_then_balance import (
    AvengersProThenLeast,
    BestRouteThenDualMap,
    BestRouteThenLeast,
    RouteLlmThenLeast,
)
from tests.unit.simulator.arms.test_basic import chosen, fleet
from tests.unit.simulator.views import FixedFleet, request

PRIORS = {
    "3b": Prediction(0.40, 100.0),
    "7b": Prediction(0.50, 100.0),
    "14b": Prediction(0.60, 100.0),
    "72b": Prediction(0.70, 100.0),
}


def tiers(*pools: str, **others: Any) -> FixedFleet:
    return fleet(*({"pool": pool} | others for pool in pools))


def routebalance(
    quality: float, cost: float, latency: float, priors: Mapping[str, Prediction] = PRIORS
) -> RouteBalance:
    return RouteBalance(
        predictor=PriorPredictor(priors),
        pools=TESTBED_TIERS,
        quality_weight=quality,
        cost_weight=cost,
        latency_weight=latency,
        max_batch_size=1,
        adaptive_window=False,
    )


# RouteBalance. 1,000 tokens in, 100 out: .066, .077, .165, .42 thousandths of a dollar; 100 tokens
# take 1.23, 2.06, 1.84, 4.74 s.


@pytest.mark.parametrize(
    ("weights", "best"),
    [
        ((1.0, 0.0, 0.0), "72b"),
        ((0.0, 1.0, 0.0), "3b"),
        ((0.0, 0.0, 1.0), "3b"),
        # 3b: .4 + .8429 + .7405 = 1.983; 7b: .5 + .8167 + .5654 = 1.882; 14b: .6 + .6071 + .6118
        # = 1.819; 72b: .7: all divided by three.
        ((1 / 3, 1 / 3, 1 / 3), "3b"),
        # 3b: .32 + .0843 + .0741 = .478; 14b: .48 + .0607 + .0612 = .602; 72b: .56.
        ((0.8, 0.1, 0.1), "14b"),
    ],
)
def test_routebalance_weighs_quality_cost_and_time_when_all_are_idle(
    weights: tuple[float, float, float], best: str
) -> None:
    pools = ("3b", "7b", "14b", "72b")
    index = chosen(routebalance(*weights), tiers(*pools))
    assert best == pools[index]


def test_routebalance_goes_elsewhere_when_requests_wait_for_the_best() -> None:
    # Latency alone: of ten requests of 100 tokens on the 3B six run: pending 1,000 / 6 + 100 =
    # 266.7 tokens · 12.3 ms = 3.28 s against the 7B's 2.06 s.
    arm = routebalance(0.0, 0.0, 1.0)
    alone = fleet({"pool": "3b"}, {"pool": "7b", "alive": False})
    assert [0] * 10 == [chosen(arm, alone, number) for number in range(10)]
    two = fleet({"pool": "3b", "running": 6, "waiting": 4}, {"pool": "7b"})
    assert 1 == chosen(arm, two, 11)
    # Once all ten have had their first token and 1 s more: 1 + 81.3 of each are done: 177 / 6.
    for number in range(10):
        arm.event(FirstToken(request(number), 0, 0), two, 5.0)
    (action,) = arm.arrive(request(12), two, 6.0)
    assert isinstance(action, Dispatch)
    assert 0 == action.instance


def test_routebalance_takes_the_shortest_queue_when_scores_are_equal() -> None:
    arm = routebalance(0.0, 1.0, 0.0)
    three = fleet(
        {"pool": "3b", "running": 2}, {"pool": "3b", "running": 1}, {"pool": "7b", "running": 0}
    )
    assert 1 == chosen(arm, three, 1)


def test_routebalance_takes_the_least_recently_assigned_when_queues_are_equal() -> None:
    arm = routebalance(0.0, 1.0, 0.0)
    two = tiers("3b", "3b")
    assert [0, 1, 0, 1] == [chosen(arm, two, number) for number in range(4)]


def test_routebalance_reckons_on_within_a_batch_when_it_holds_several() -> None:
    # The batch waits for its third request or .1 s. Nobody runs: the first takes 0 (1.23 s); then
    # its 100 tokens pend there: 200 · 12.3 ms = 2.46 s against 1.23 s on 1; then 200 tokens pend
    # nowhere less: 0 again, the least recently assigned.
    arm = RouteBalance(
        predictor=PriorPredictor(PRIORS),
        pools=TESTBED_TIERS,
        adaptive_window=False,
        max_batch_size=3,
    )
    two = tiers("3b", "3b")
    asked = [request(number) for number in range(3)]
    assert [] == list(arm.arrive(asked[0], two, 1.0))
    assert 1.1 == arm.wake_at
    assert [] == list(arm.arrive(asked[1], two, 1.05))
    actions = list(arm.arrive(asked[2], two, 1.06))
    assert [Dispatch(asked[0], 0), Dispatch(asked[1], 1), Dispatch(asked[2], 0)] == actions
    assert arm.wake_at is None


def test_routebalance_goes_to_another_model_when_its_own_batch_fills_the_best() -> None:
    # Latency alone, two in a batch: the first takes the 3B (1.23 s); with one waiting there and
    # 100 tokens pending the second would take 2.46 s there and 2.06 s on the 7B.
    arm = RouteBalance(
        predictor=PriorPredictor(PRIORS),
        pools=TESTBED_TIERS,
        quality_weight=0.0,
        cost_weight=0.0,
        latency_weight=1.0,
        adaptive_window=False,
        max_batch_size=2,
    )
    mixed = tiers("3b", "7b")
    asked = [request(number) for number in range(2)]
    assert [] == list(arm.arrive(asked[0], mixed, 0.0))
    assert [Dispatch(asked[0], 0), Dispatch(asked[1], 1)] == list(arm.arrive(asked[1], mixed, 0.0))


def test_routebalance_sends_the_longest_first_when_the_time_is_up() -> None:
    class ById:
        def predict(self, asked: object) -> Mapping[str, Prediction]:
            tokens = {"r0": 10.0, "r1": 300.0}[asked.request_id]  # type: ignore[attr-defined]
            return {"3b": Prediction(0.5, tokens)}

    arm = RouteBalance(predictor=ById(), pools=TESTBED_TIERS)
    one = tiers("3b")
    asked = [request(0), request(1)]
    for each in asked:
        assert [] == list(arm.arrive(each, one, 0.0))
    assert [Dispatch(asked[1], 0), Dispatch(asked[0], 0)] == list(arm.wake(one, 0.1))


def test_routebalance_widens_its_window_when_instances_have_queues() -> None:
    arm = RouteBalance(predictor=PriorPredictor(PRIORS), pools=TESTBED_TIERS)
    for waiting, size, timeout in ((0, 4, 0.05), (1, 16, 0.1), (2, 32, 0.2)):
        two = fleet(*({"pool": "3b", "waiting": int(each < waiting)} for each in range(2)))
        arm.arrive(request(waiting), two, 0.0)
        arm.wake(two, 0.2)
        assert (size, timeout) == (arm._batch_size, arm._timeout_seconds)


def test_routebalance_stretches_quality_when_asked_to() -> None:
    # Raw: .5 · .40 + .5 · .8429 = .621 against .5 · .70; stretched: .5 · 0 + .421 against .5.
    two = tiers("3b", "72b")
    assert 0 == chosen(routebalance(0.5, 0.5, 0.0), two)
    stretched = RouteBalance(
        predictor=PriorPredictor(PRIORS),
        pools=TESTBED_TIERS,
        quality_weight=0.5,
        cost_weight=0.5,
        latency_weight=0.0,
        quality_norm="minmax",
        max_batch_size=1,
        adaptive_window=False,
    )
    assert 1 == chosen(stretched, two)


def test_routebalance_rejects_the_batch_when_nothing_lives() -> None:
    arm = RouteBalance(predictor=PriorPredictor(PRIORS), pools=TESTBED_TIERS)
    asked = request()
    dead = fleet({"pool": "3b", "alive": False})
    arm.arrive(asked, dead, 0.0)
    assert [Reject(asked)] == list(arm.wake(dead, 0.1))


# RouteLLM: the strongest against the weakest, 1 / (1 + e^−(.3 / .1)) = .953.


def test_routellm_takes_the_strong_model_when_the_win_rate_reaches_the_threshold() -> None:
    assert 0.9526 == pytest.approx(logistic(3), abs=1e-4)
    pools = ["7b", "72b", "3b"]
    for threshold, pool in ((0.95, "72b"), (0.96, "3b")):
        router = RouteLlm(
            predictor=PriorPredictor(PRIORS), pools=TESTBED_TIERS, threshold=threshold
        )
        assert pool == router.pick(request(), pools)


def test_routellm_takes_the_weak_model_when_the_strong_one_is_not_better() -> None:
    worse = PRIORS | {"72b": Prediction(0.39, 100.0)}
    router = RouteLlm(predictor=PriorPredictor(worse), pools=TESTBED_TIERS)
    assert "3b" == router.pick(request(), ["3b", "72b"])


# BEST-Route: 2 / (1 + e^(difference / .1)): .095 for the 3B, .238 the 7B, .538 the 14B.


@pytest.mark.parametrize(
    ("threshold", "pool"), [(0.8, "72b"), (0.5, "14b"), (0.2, "7b"), (0.09, "3b")]
)
def test_best_route_takes_the_cheapest_match_when_the_threshold_falls(
    threshold: float, pool: str
) -> None:
    router = BestRoute(predictor=PriorPredictor(PRIORS), pools=TESTBED_TIERS, threshold=threshold)
    assert pool == router.pick(request(), list(PRIORS))


def test_best_route_takes_the_cheap_model_when_it_is_as_good() -> None:
    equal = PRIORS | {"3b": Prediction(0.70, 100.0)}
    router = BestRoute(predictor=PriorPredictor(equal), pools=TESTBED_TIERS, threshold=1.0)
    assert "3b" == router.pick(request(), list(PRIORS))


# Avengers-Pro.


def table() -> ClusterTable:
    """Sums are hard and need the strong model; greetings are not."""
    return fit_clusters(
        [
            *(
                Scored(
                    prompt=f"compute the integral of x{number}",
                    quality_by_pool={"3b": 0.1, "72b": 0.9},
                    dollars_by_pool={"3b": 1.0, "72b": 6.0},
                )
                for number in range(10)
            ),
            *(
                Scored(
                    prompt=f"say hello to my friend {number}",
                    quality_by_pool={"3b": 0.9, "72b": 0.9},
                    dollars_by_pool={"3b": 1.0, "72b": 6.0},
                )
                for number in range(10)
            ),
        ],
        count=2,
        seed=1,
    )


@pytest.mark.parametrize(
    ("alpha", "prompt", "pool"),
    [
        # Sums: 3B .4 · 0 + .6 · 1 = .6, 72B .4 · 1 + 0 = .4; greetings: .4 · .5 + .6 against .2.
        (0.4, "compute the integral of y", "3b"),
        (0.6, "compute the integral of y", "72b"),
        (0.6, "say hello to my friend", "3b"),
    ],
)
def test_avengers_pro_weighs_performance_and_cost_when_alpha_moves(
    alpha: float, prompt: str, pool: str
) -> None:
    router = AvengersPro(clusters=table(), alpha=alpha, nearest=1)
    assert pool == router.pick(replace(request(), prompt=prompt), ["72b", "3b"])


def test_avengers_pro_adds_up_clusters_when_several_are_near() -> None:
    # Both equally far: 3B .5 · (0 + .5) + .5 · 2 = 1.25; 72B .5 · (1 + .5) = .75.
    near = ClusterTable(
        centres=[[0.0] * 1024, [0.0] * 1024],
        profiles=[
            {"3b": Profile(0.0, 0.0), "72b": Profile(1.0, 1.0)},
            {"3b": Profile(0.5, 0.0), "72b": Profile(0.5, 1.0)},
        ],
    )
    assert "3b" == AvengersPro(clusters=near).pick(request(), ["3b", "72b"])
    assert "72b" == AvengersPro(clusters=near, alpha=0.9).pick(request(), ["3b", "72b"])


def test_fit_clusters_is_the_same_when_the_seed_is() -> None:
    assert table() == table()


def test_fit_clusters_refuses_when_prompts_are_too_few_or_scored_otherwise() -> None:
    one = Scored(prompt="a", quality_by_pool={"3b": 1.0}, dollars_by_pool={"3b": 1.0})
    with pytest.raises(ValueError, match="1 prompts cannot fill 2 clusters"):
        fit_clusters([one], count=2)
    other = Scored(prompt="b", quality_by_pool={"7b": 1.0}, dollars_by_pool={"7b": 1.0})
    with pytest.raises(ValueError, match="score all of them on the same models"):
        fit_clusters([one, other], count=2)


def test_embedding_has_length_one_when_there_are_words() -> None:
    assert 1.0 == pytest.approx(sum(value**2 for value in embed("two words").values()))
    assert {} == embed("  ")


# Router, then balancer.


def test_pipeline_balances_within_the_routers_pool_when_another_is_idle() -> None:
    two: dict[str, Any] = {"predictor": PriorPredictor(PRIORS), "pools": TESTBED_TIERS}
    mixed = fleet(
        {"pool": "3b"},
        {"pool": "72b", "running": 5},
        {"pool": "72b", "running": 2},
    )
    assert 2 == chosen(RouteLlmThenLeast(**two), mixed)
    assert 2 == chosen(BestRouteThenLeast(**two), mixed)
    assert 0 == chosen(BestRouteThenLeast(**two, threshold=0.05), mixed)


def test_pipeline_leaves_a_pool_out_when_none_of_it_lives() -> None:
    arm = RouteLlmThenLeast(predictor=PriorPredictor(PRIORS), pools=TESTBED_TIERS)
    mixed = fleet({"pool": "3b"}, {"pool": "14b"}, {"pool": "72b", "alive": False})
    assert 1 == chosen(arm, mixed)
    nothing = fleet({"pool": "3b", "alive": False})
    assert isinstance(next(iter(arm.arrive(request(), nothing, 0.0))), Reject)


def test_pipeline_tells_the_pools_balancer_when_something_happens() -> None:
    arm = BestRouteThenDualMap(predictor=PriorPredictor(PRIORS), pools=TESTBED_TIERS)
    mixed = fleet({"pool": "3b"}, {"pool": "72b"}, {"pool": "72b"})
    asked = request(1, prompt_tokens=2_048, blocks=(1, 2, 3, 4))
    (action,) = arm.arrive(asked, mixed, 0.0)
    assert isinstance(action, Dispatch)
    assert action.instance in (1, 2)
    balancer = arm._balancers["72b"]
    assert isinstance(balancer, DualMap)
    assert ["r1"] == list(balancer._pairs)
    arm.event(InstanceRemoved(0, crashed=False), mixed, 0.0)
    arm.event(Finished(asked, action.instance, 3), mixed, 1.0)
    assert {} == balancer._pairs


def test_avengers_pipeline_uses_the_prompt_when_it_routes() -> None:
    arm = AvengersProThenLeast(clusters=table(), alpha=0.6, nearest=1)
    mixed = fleet({"pool": "3b"}, {"pool": "72b"})
    hard = replace(request(1), prompt="compute the integral of z")
    (action,) = arm.arrive(hard, mixed, 0.0)
    assert Dispatch(hard, 1) == action


# Early rejection: 16,000 tokens take .8 s + .32 s of attention + 2 · 12 ms = 1.144 s.


def test_rejecting_passes_on_when_one_instance_is_in_time() -> None:
    arm = Rejecting(LeastRequests(), ttft_slo_seconds=1.2)
    busy = {"pending_prefill_tokens": 9_000, "pending_prefill_seconds": 0.5, "running": 0}
    assert 0 == chosen(arm, fleet(busy, {"running": 1}), prompt_tokens=16_000)


def test_rejecting_rejects_when_no_instance_is_in_time() -> None:
    arm = Rejecting(LeastRequests(), ttft_slo_seconds=1.2)
    busy = {"pending_prefill_tokens": 2_000, "pending_prefill_seconds": 0.1}
    asked = request(prompt_tokens=16_000)
    assert [Reject(asked)] == list(arm.arrive(asked, fleet(busy, busy), 0.0))


def test_rejecting_counts_the_cache_the_margin_and_the_age_when_it_estimates() -> None:
    two = fleet({"cached": {1, 2, 3}}, {})
    asked = request(prompt_tokens=2_048, blocks=(1, 2, 3, 4))
    # 512 tokens beside 1,536: .0256 + .0023 + .012 = .0399 s; nothing cached: .1248 s.
    exact = Rejecting(LeastRequests(), ttft_slo_seconds=0.041)
    assert isinstance(next(iter(exact.arrive(asked, two, 0.0))), Dispatch)
    careful = Rejecting(LeastRequests(), ttft_slo_seconds=0.041, margin=1.1)
    assert [Reject(asked)] == list(careful.arrive(asked, two, 0.0))
    assert [Reject(asked)] == list(exact.arrive(asked, two, 0.005))


def test_rejecting_looks_at_the_iterations_when_there_is_a_tpot_slo() -> None:
    arm = Rejecting(LeastRequests(), tpot_slo_seconds=0.015)
    asked = request()
    # 12 ms + 200 · 30 µs = 18 ms; 12 ms + 50 · 30 µs = 13.5 ms.
    assert [Reject(asked)] == list(arm.arrive(asked, fleet({"running": 200}), 0.0))
    assert 0 == chosen(arm, fleet({"running": 50}))


def test_rejecting_wakes_its_arm_when_that_holds_a_batch() -> None:
    inner = RouteBalance(predictor=PriorPredictor(PRIORS), pools=TESTBED_TIERS)
    arm = Rejecting(inner)
    one = tiers("3b")
    asked = request()
    assert [] == list(arm.arrive(asked, one, 0.0))
    assert 0.1 == arm.wake_at
    assert [Dispatch(asked, 0)] == list(arm.wake(one, 0.1))
    assert arm.wake_at is None
    arm.event(Failed(asked, 0), one, 0.2)
    assert {} == inner._sent[0]


# Bounds.


def test_oracle_takes_the_measured_best_when_the_rest_is_free() -> None:
    asked = request(quality_by_pool={"3b": 0.2, "7b": 0.9, "72b": 0.8})
    pools = {pool: TESTBED_TIERS[pool] for pool in ("3b", "7b", "72b")}
    arm = FusedOracle(pools=pools, seconds_weight=0.0, dollars_weight=0.0)
    (action,) = arm.arrive(asked, tiers("3b", "7b", "72b"), 0.0)
    assert Dispatch(asked, 1) == action


def test_oracle_trades_quality_for_dollars_and_seconds_when_they_count() -> None:
    # 72B − 3B: .1 of quality against .354 thousandths of a dollar.
    asked = request(quality_by_pool={"3b": 0.7, "72b": 0.8})
    pools = {pool: TESTBED_TIERS[pool] for pool in ("3b", "72b")}
    both = tiers("3b", "72b")
    for weight, index in ((200.0, 1), (300.0, 0)):
        arm = FusedOracle(pools=pools, seconds_weight=0.0, dollars_weight=weight)
        assert Dispatch(asked, index) == next(iter(arm.arrive(asked, both, 0.0)))
    # A queue of 20 s on the 72B at .01 a second.
    both.instances[1].pending_prefill_seconds = 20.0
    slow = FusedOracle(pools=pools, seconds_weight=0.01, dollars_weight=0.0)
    assert Dispatch(asked, 0) == next(iter(slow.arrive(asked, both, 0.0)))


def test_oracle_prefers_the_true_length_when_answers_differ() -> None:
    # 1,000 tokens of the 3B against 50 of the 7B: .12 against .0735 thousandths of a dollar.
    asked = request(
        quality_by_pool={"3b": 0.5, "7b": 0.5}, output_tokens_by_pool={"3b": 1_000, "7b": 50}
    )
    pools = {pool: TESTBED_TIERS[pool] for pool in ("3b", "7b")}
    arm = FusedOracle(pools=pools, seconds_weight=0.0, dollars_weight=1.0)
    assert Dispatch(asked, 1) == next(iter(arm.arrive(asked, tiers("3b", "7b"), 0.0)))


def test_true_predictor_says_what_is_missing_when_a_score_is() -> None:
    asked = request(quality_by_pool={"3b": 0.5})
    with pytest.raises(ValueError, match="'r0' has no measured score for '7b'"):
        TruePredictor({"3b": TESTBED_TIERS["3b"], "7b": TESTBED_TIERS["7b"]}).predict(asked)


def test_pooled_profile_does_the_work_of_all_when_there_are_eight() -> None:
    one = EngineProfile()
    pooled = pooled_profile(one, 8)
    work: dict[str, Any] = {
        "prefill_tokens": 1_000,
        "attention_pairs": 5e6,
        "decode_sequences": 16,
        "decode_context_tokens": 80_000,
    }
    alone = one.iteration_duration_seconds(**work) - one.iteration_seconds
    together = pooled.iteration_duration_seconds(**work) - one.iteration_seconds
    assert alone / 8 == pytest.approx(together)
    assert (4_000_000, 2_048, 65_536) == (
        pooled.kv_capacity_tokens,
        pooled.max_sequences,
        pooled.max_batched_tokens,
    )
    with pytest.raises(ValueError, match="instances is 0"):
        pooled_profile(one, 0)
