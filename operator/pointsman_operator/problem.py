"""Something that keeps a pool from what it wants, as its conditions tell it."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman_api.conditions import ModelPoolCondition, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, and what to do about it."""

    condition: ModelPoolCondition
    """The condition that it makes False: Accepted where the spec is wrong, else the aspect that
    waits for something outside."""
    reason: Reason
    message: str
    """One sentence: what is wrong, the value, what is allowed, the next step."""


class RefusedSpecError(ValueError):
    """A pool's spec cannot be rendered."""

    def __init__(self, message: str, *, reason: Reason = Reason.INVALID) -> None:
        super().__init__(message)
        self.problem = Problem(
            condition=ModelPoolCondition.ACCEPTED, reason=reason, message=message
        )
