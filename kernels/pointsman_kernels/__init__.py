"""The mixture-of-experts layer: routing, dispatch, grouped products and combination."""

from pointsman_kernels.calls import ExpertCalls
from pointsman_kernels.combine import combine, combine_reference
from pointsman_kernels.down import down, down_reference
from pointsman_kernels.gate import GPT_OSS, SWIGLU, Activation, Gate, apply_gate
from pointsman_kernels.gate_up import gate_up, gate_up_reference
from pointsman_kernels.moe import fused_moe, fused_moe_reference
from pointsman_kernels.plan import DispatchPlan, plan, plan_reference
from pointsman_kernels.route import Routing, Scoring, route, route_reference

__all__ = [
    "GPT_OSS",
    "SWIGLU",
    "Activation",
    "DispatchPlan",
    "ExpertCalls",
    "Gate",
    "Routing",
    "Scoring",
    "apply_gate",
    "combine",
    "combine_reference",
    "down",
    "down_reference",
    "fused_moe",
    "fused_moe_reference",
    "gate_up",
    "gate_up_reference",
    "plan",
    "plan_reference",
    "route",
    "route_reference",
]
