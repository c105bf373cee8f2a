"""What the API server has refused, and when it is worth another try. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pointsman_operator.objects import digest, name_of
from pointsman_operator.plan import PoolPlan

FIRST_SECONDS = 15.0
MOST_SECONDS = 600.0
"""Between two tries of the same. An edit of the pool is tried at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The last refusals of one pool's objects."""

    message: str
    """What the API server said last."""
    revision: str
    """The revision that was refused last; empty where it serves already."""
    plans: frozenset[str]
    """What is not tried again before ``retry_at``: see :func:`plan_digest`."""
    retry_at: float
    wait_seconds: float

    def holds(self, plan: PoolPlan, *, now: float) -> bool:
        """Whether this very plan is not to be tried now."""
        return now < self.retry_at and plan_digest(plan) in self.plans

    def revision_at(self, now: float) -> str:
        """The revision that is not to be tried now; empty: none."""
        return self.revision if now < self.retry_at else ""


def refused(
    before: Refusal | None, plan: PoolPlan, message: str, *, applied: str, now: float
) -> Refusal:
    """Remember one more refusal.

    Args:
        before: what was remembered.
        plan: what was tried.
        applied: the revision of the RayService as it is; empty where there is none.
    """
    new = plan.revision if plan.revision != applied else ""
    this = frozenset({plan_digest(plan)})
    if before is not None and now < before.retry_at:
        if not new or new == before.revision:
            # What was accepted last is refused too: both wait.
            return Refusal(
                message=message,
                revision=before.revision,
                plans=before.plans | this,
                retry_at=before.retry_at,
                wait_seconds=before.wait_seconds,
            )
        before = None
    again = before is not None and (plan_digest(plan) in before.plans or new == before.revision)
    wait = FIRST_SECONDS
    if before is not None and again:
        wait = min(MOST_SECONDS, 2.0 * before.wait_seconds)
    return Refusal(
        message=message, revision=new, plans=this, retry_at=now + wait, wait_seconds=wait
    )


def plan_digest(plan: PoolPlan) -> str:
    """Equal for plans that write the same; tokens that are new each time do not count."""
    return digest(
        {
            "create": [_address(item) for item in plan.create],
            "apply": [_address(x) if x.get("kind") == "Secret" else x for x in plan.apply],
            "delete": [str(ref) for ref in plan.delete],
        }
    )


def _address(obj: Mapping[str, Any]) -> list[str]:
    return [str(obj.get("kind")), name_of(obj)]
