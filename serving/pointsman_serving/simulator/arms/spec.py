"""How an arm is made by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pointsman_serving.simulator.arms.rejecting import Rejecting
from pointsman_serving.simulator.arms.tuning import Range, Tunable, Value

if TYPE_CHECKING:
    from pointsman_serving.simulator.arm import Arm
    from pointsman_serving.simulator.arms.clusters import ClusterTable
    from pointsman_serving.simulator.arms.prediction import PoolFacts, Predictor


class Family(StrEnum):
    """What a rule chooses."""

    AFFINITY = "Affinity"
    """The instance, among those of one model."""
    FUSED = "Fused"
    """The model and the instance."""
    BOUND = "Bound"
    """What only somebody who knows the future could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmContext:
    """What an experiment tells its arms; each takes of it what it needs."""

    seed: int = 0
    ttft_slo_seconds: float = 5.0
    tpot_slo_seconds: float | None = None
    pools: Mapping[str, PoolFacts] = field(default_factory=lambda: MappingProxyType({}))
    """By the pools' names."""
    predictor: Predictor | None = None
    clusters: ClusterTable | None = None


_CONTEXT: Final = tuple(each.name for each in fields(ArmContext))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSpec:
    """A rule, its parameters and where it comes from."""

    name: str
    family: Family
    source: str
    build: Callable[..., Arm]
    tunables: tuple[Tunable, ...] = ()
    rejects: bool = False
    """Wrapped: what cannot meet its SLO is rejected early."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of ``ArmContext`` that it takes."""
        names = inspect.signature(self.build).parameters
        return tuple(name for name in _CONTEXT if name in names)

    @property
    def defaults(self) -> Mapping[str, Value]:
        """Its published parameters."""
        own = {
            name: parameter.default
            for name, parameter in inspect.signature(self.build).parameters.items()
            if name not in _CONTEXT
        }
        return own | {"margin": 1.0} if self.rejects else own

    def make(self, context: ArmContext, **parameters: Value) -> Arm:
        """An arm with the published parameters, but for those that are given.

        Raises:
            ValueError: a parameter that the rule does not have, or a part of the context that it
                needs and that is missing.
        """
        known = self.defaults
        for name in parameters:
            if name not in known:
                raise ValueError(
                    f"arm {self.name!r} has no parameter {name!r}: give one of {sorted(known)}"
                )
        given = {name: getattr(context, name) for name in self.needs}
        for name, value in given.items():
            if value is None or (name == "pools" and not value):
                raise ValueError(
                    f"arm {self.name!r} needs {name} and the context has none: "
                    f"set ArmContext.{name}"
                )
        margin = parameters.pop("margin", 1.0) if self.rejects else 1.0
        arm = self.build(**given, **parameters)
        if not self.rejects:
            return arm
        if not isinstance(margin, int | float):
            raise ValueError(f"margin of arm {self.name!r} is {margin!r}: give a number")
        return Rejecting(
            arm,
            ttft_slo_seconds=context.ttft_slo_seconds,
            tpot_slo_seconds=context.tpot_slo_seconds,
            margin=margin,
        )

    def rejecting(self) -> ArmSpec:
        """The same rule behind early rejection."""
        return ArmSpec(
            name=f"{self.name}+reject",
            family=self.family,
            source=f"{self.source}; early rejection as in Mooncake",
            build=self.build,
            tunables=(*self.tunables, Range(name="margin", low=0.5, high=2.0, logarithmic=True)),
            rejects=True,
        )
