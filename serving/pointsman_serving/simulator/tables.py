"""The route table that a fleet of the simulator has, if nobody gives one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pointsman_api.route_table import (
    BackendType,
    FusedObjective,
    LatencyObjective,
    Overload,
    OverloadAction,
    PoolEntry,
    Pricing,
    Route,
    RouteTable,
    Rule,
    Stickiness,
    Strategy,
    Target,
)

if TYPE_CHECKING:
    from pointsman_serving.simulator.arm import FleetView

MODEL: Final = "assistant"
"""The name that simulated requests ask for."""


def fleet_table(
    view: FleetView,
    *,
    ttft_slo_seconds: float,
    reject: bool,
    quality_per_second: float,
    quality_per_dollar: float,
    sticky_seconds: float,
    queue_seconds: float,
) -> RouteTable:
    """One policy with one rule over all pools; see ``ours.Pointsman`` for the arguments."""
    pools: dict[str, PoolEntry] = {}
    for instance in view.instances:
        pools.setdefault(
            instance.pool,
            PoolEntry(
                name=instance.pool,
                served_model_name=instance.pool,
                backend=BackendType.RAY_SERVE,
                engine="VLLM",
                sequence_slots=instance.profile.max_sequences,
                pricing=Pricing(
                    input_dollars=instance.input_dollars,
                    cached_input_dollars=instance.input_dollars,
                    output_dollars=instance.output_dollars,
                ),
            ),
        )
    rule = Rule(
        name="default",
        targets=tuple(Target(pool=name) for name in pools),
        strategy=Strategy(
            objective=FusedObjective(
                quality_per_second=quality_per_second, quality_per_dollar=quality_per_dollar
            ),
            stickiness=Stickiness(ttl_seconds=sticky_seconds),
        ),
        slo=LatencyObjective(ttft_seconds=ttft_slo_seconds or None),
        overload=Overload(
            max_queue_seconds=queue_seconds,
            max_queued_requests=1_000_000,
            action=OverloadAction.REJECT if reject else OverloadAction.QUEUE,
        ),
    )
    return RouteTable(pools=pools, routes={MODEL: Route(policy="simulated", rules=(rule,))})
