"""The published rules that are compared: one module for each, and this table of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pointsman_serving.simulator.arms.aibrix import AibrixPrefixCache
from pointsman_serving.simulator.arms.basic import (
    LeastPendingPrefill,
    LeastRequests,
    RandomArm,
    RoundRobin,
)
from pointsman_serving.simulator.arms.bounds import FusedOracle
from pointsman_serving.simulator.arms.dualmap import DualMap
from pointsman_serving.simulator.arms.dynamo import Dynamo
from pointsman_serving.simulator.arms.kubeai import KubeAiPrefixHash
from pointsman_serving.simulator.arms.llm_d import LlmD
from pointsman_serving.simulator.arms.llumnix import Llumnix
from pointsman_serving.simulator.arms.lmetric import LMetric
from pointsman_serving.simulator.arms.min_ttft import MinTtft
from pointsman_serving.simulator.arms.preble import Preble
from pointsman_serving.simulator.arms.ray_prefix import RayPrefixAffinity
from pointsman_serving.simulator.arms.routebalance import RouteBalance
from pointsman_serving.simulator.arms.router_then_balance import (
    AvengersProThenDualMap,
    AvengersProThenLeast,
    BestRouteThenDualMap,
    BestRouteThenLeast,
    RouteLlmThenLeast,
)
from pointsman_serving.simulator.arms.sglang import CacheAware, LibraryCacheAware
from pointsman_serving.simulator.arms.spec import ArmContext, ArmSpec, Family
from pointsman_serving.simulator.arms.tuning import Choice, Range

__all__ = ["ARMS", "ArmContext", "ArmSpec", "Family"]

_SGLANG: Final = (
    Range(name="cache_threshold", low=0.05, high=0.95),
    Range(name="balance_abs_threshold", low=1, high=128, logarithmic=True, whole=True),
    Range(name="balance_rel_threshold", low=1.0, high=4.0),
    Choice(name="own_tree", values=(False, True)),
)
_SPECS: Final = (
    ArmSpec(
        name="random",
        family=Family.AFFINITY,
        source="folklore",
        build=RandomArm,
    ),
    ArmSpec(
        name="round-robin",
        family=Family.AFFINITY,
        source="folklore",
        build=RoundRobin,
    ),
    ArmSpec(
        name="least-requests",
        family=Family.AFFINITY,
        source="folklore",
        build=LeastRequests,
    ),
    ArmSpec(
        name="least-pending-prefill",
        family=Family.AFFINITY,
        source="folklore",
        build=LeastPendingPrefill,
    ),
    ArmSpec(
        name="min-ttft",
        family=Family.AFFINITY,
        source="Mooncake, FAST 2025",
        build=MinTtft,
    ),
    ArmSpec(
        name="dualmap",
        family=Family.AFFINITY,
        source="DualMap, arXiv 2602.06502",
        build=DualMap,
        tunables=(
            Range(name="affinity_share", low=0.1, high=4.0, logarithmic=True),
            Range(name="base_blocks", low=1, high=8, logarithmic=True, whole=True),
            Range(name="window_seconds", low=10, high=300, logarithmic=True),
            Choice(name="rebalance", values=(True, False)),
        ),
    ),
    ArmSpec(
        name="sglang",
        family=Family.AFFINITY,
        source="sgl-project/sglang, command line",
        build=CacheAware,
        tunables=_SGLANG,
    ),
    ArmSpec(
        name="sglang-library",
        family=Family.AFFINITY,
        source="sgl-project/sglang, library",
        build=LibraryCacheAware,
        tunables=_SGLANG,
    ),
    ArmSpec(
        name="dynamo",
        family=Family.AFFINITY,
        source="ai-dynamo/dynamo",
        build=Dynamo,
        tunables=(
            Range(name="overlap_score_credit", low=0.0, high=1.0),
            Range(name="prefill_load_scale", low=0.1, high=10.0, logarithmic=True),
            Range(name="router_temperature", low=0.0, high=0.5),
            Range(name="queue_threshold", low=0.5, high=16.0, logarithmic=True),
        ),
    ),
    ArmSpec(
        name="llm-d",
        family=Family.AFFINITY,
        source="llm-d/llm-d-inference-scheduler",
        build=LlmD,
        tunables=(
            Range(name="queue_weight", low=0.1, high=10.0, logarithmic=True),
            Range(name="kv_weight", low=0.1, high=10.0, logarithmic=True),
            Range(name="prefix_weight", low=0.1, high=10.0, logarithmic=True),
            Choice(name="own_tree", values=(False, True)),
            Choice(name="filter_saturated", values=(False, True)),
        ),
    ),
    ArmSpec(
        name="ray",
        family=Family.AFFINITY,
        source="ray 2.60, PrefixCacheAffinityRouter",
        build=RayPrefixAffinity,
        tunables=(
            Range(name="imbalanced_threshold", low=1, high=128, logarithmic=True, whole=True),
            Range(name="match_rate_threshold", low=0.0, high=0.9),
            Choice(name="own_tree", values=(False, True)),
        ),
    ),
    ArmSpec(
        name="aibrix",
        family=Family.AFFINITY,
        source="vllm-project/aibrix, prefix-cache",
        build=AibrixPrefixCache,
        tunables=(
            Range(name="imbalance_abs_count", low=1, high=64, logarithmic=True, whole=True),
            Range(name="standard_deviation_factor", low=0.0, high=4.0),
            Choice(name="own_tree", values=(False, True)),
            Choice(name="fallback", values=("requests", "pending")),
        ),
    ),
    ArmSpec(
        name="preble",
        family=Family.AFFINITY,
        source="Preble, ICLR 2025",
        build=Preble,
        tunables=(
            Range(name="window_seconds", low=30, high=600, logarithmic=True),
            Range(name="high_load_threshold", low=1.1, high=4.0, logarithmic=True),
            Choice(name="load", values=("pending", "window")),
            Choice(name="eviction", values=(True, False)),
        ),
    ),
    ArmSpec(
        name="kubeai",
        family=Family.AFFINITY,
        source="substratusai/kubeai, PrefixHash",
        build=KubeAiPrefixHash,
        tunables=(Range(name="mean_load_factor", low=1.0, high=4.0, logarithmic=True),),
    ),
    ArmSpec(
        name="llumnix",
        family=Family.AFFINITY,
        source="AlibabaPAI/llumnix",
        build=Llumnix,
    ),
    ArmSpec(
        name="lmetric",
        family=Family.AFFINITY,
        source="LMetric, arXiv 2603.15202",
        build=LMetric,
        tunables=(Choice(name="count_itself", values=(False, True)),),
    ),
    ArmSpec(
        name="routebalance",
        family=Family.FUSED,
        source="RouteBalance, arXiv 2606.17949",
        build=RouteBalance,
        tunables=(
            Range(name="quality_weight", low=0.0, high=1.0),
            Range(name="cost_weight", low=0.0, high=1.0),
            Range(name="latency_weight", low=0.0, high=1.0),
            Choice(name="quality_norm", values=("raw", "minmax")),
        ),
    ),
    ArmSpec(
        name="routellm",
        family=Family.FUSED,
        source="RouteLLM, arXiv 2406.18665, then the fewest requests",
        build=RouteLlmThenLeast,
        tunables=(Range(name="threshold", low=0.0, high=1.0),),
    ),
    ArmSpec(
        name="best-route",
        family=Family.FUSED,
        source="BEST-Route, arXiv 2506.22716, then the fewest requests",
        build=BestRouteThenLeast,
        tunables=(Range(name="threshold", low=0.0, high=1.0),),
    ),
    ArmSpec(
        name="best-route-dualmap",
        family=Family.FUSED,
        source="BEST-Route, arXiv 2506.22716, then DualMap, arXiv 2602.06502",
        build=BestRouteThenDualMap,
        tunables=(
            Range(name="threshold", low=0.0, high=1.0),
            Range(name="affinity_share", low=0.1, high=4.0, logarithmic=True),
        ),
    ),
    ArmSpec(
        name="avengers-pro",
        family=Family.FUSED,
        source="Avengers-Pro, arXiv 2508.12631, then the fewest requests",
        build=AvengersProThenLeast,
        tunables=(
            Range(name="alpha", low=0.0, high=1.0),
            Range(name="nearest", low=1, high=8, whole=True),
        ),
    ),
    ArmSpec(
        name="avengers-pro-dualmap",
        family=Family.FUSED,
        source="Avengers-Pro, arXiv 2508.12631, then DualMap, arXiv 2602.06502",
        build=AvengersProThenDualMap,
        tunables=(
            Range(name="alpha", low=0.0, high=1.0),
            Range(name="affinity_share", low=0.1, high=4.0, logarithmic=True),
        ),
    ),
    ArmSpec(
        name="oracle",
        family=Family.BOUND,
        source="the measured scores and true lengths",
        build=FusedOracle,
        tunables=(
            Range(name="seconds_weight", low=1e-4, high=1.0, logarithmic=True),
            Range(name="dollars_weight", low=1.0, high=1e5, logarithmic=True),
        ),
    ),
)

ARMS: Final[Mapping[str, ArmSpec]] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every rule by its name; ``ArmSpec.rejecting`` puts early rejection in front of it."""
