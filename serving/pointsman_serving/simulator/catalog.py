"""The arms by name, our own among them, and how a command names one with its parameters."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

from pointsman_serving.simulator.arms import ARMS, ArmContext, ArmSpec, Family
from pointsman_serving.simulator.ours import Pointsman

if TYPE_CHECKING:
    from pointsman_serving.simulator.arm import Arm
    from pointsman_serving.simulator.arms.tuning import Value

_REJECT: Final = "+reject"

OURS: Final = ArmSpec(
    name=Pointsman.name,
    family=Family.FUSED,
    source="this project",
    build=Pointsman,
)

KNOWN_ARMS: Final[Mapping[str, ArmSpec]] = MappingProxyType({OURS.name: OURS, **ARMS})
"""Every arm; each one's name with ``+reject`` is the same with early rejection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmChoice:
    """An arm and the parameters that differ from its defaults."""

    name: str
    parameters: Mapping[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        stated = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.name}:{stated}"

    @property
    def spec(self) -> ArmSpec:
        """What it is made from.

        Raises:
            ValueError: there is no arm of this name.
        """
        name = self.name.removesuffix(_REJECT)
        spec = KNOWN_ARMS.get(name)
        if spec is None:
            close = difflib.get_close_matches(name, KNOWN_ARMS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(
                f"there is no arm {name!r}{hint}: give one of {', '.join(KNOWN_ARMS)}, "
                f"each also with {_REJECT} behind it"
            )
        if name == self.name:
            return spec
        if spec is OURS:
            return ArmSpec(
                name=self.name,
                family=spec.family,
                source=spec.source,
                build=partial(Pointsman, reject=True),
            )
        return spec.rejecting()

    def make(self, context: ArmContext) -> Arm:
        """A new arm.

        Raises:
            ValueError: no such arm or parameter, or it needs what the context does not have.
        """
        return self.spec.make(context, **self.parameters)


def parse_arm(text: str) -> ArmChoice:
    """Read NAME or NAME:PARAMETER=VALUE,PARAMETER=VALUE; values are numbers, true, false or words.

    Raises:
        ValueError: the text is not of this form.
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, Value] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not (equals and key.strip()):
            raise ValueError(
                f"{part!r} in arm {text!r} is not of the form PARAMETER=VALUE: "
                "write such as sglang:balance_abs_threshold=64"
            )
        parameters[key.strip()] = _value(value.strip())
    return ArmChoice(name=name.strip(), parameters=parameters)


def _value(text: str) -> Value:
    words: dict[str, Value] = {"true": True, "false": False, "none": None, "inf": float("inf")}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return cast("Value", value) if isinstance(value, int | float | str) else text
