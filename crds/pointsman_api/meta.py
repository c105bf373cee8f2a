"""The small types that both kinds share: metadata, conditions, references, durations, decimals."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, GetCoreSchemaHandler, StrictInt
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pointsman_api.rules import ApiModel, CelRule, FieldRules, MapList

GROUP = "pointsman.dev"
VERSION = "v1alpha1"
API_VERSION: Literal["pointsman.dev/v1alpha1"] = "pointsman.dev/v1alpha1"
DEFAULT_NAMESPACE = "default"

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""An RFC 1123 subdomain, as Kubernetes asks of most names."""
LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""An RFC 1123 label: a namespace, a rule's name."""
DURATION_PATTERN = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
"""Gateway API's durations (GEP-2257): four parts at most, no signs, no fractions."""
AMOUNT_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"
FRACTION_PATTERN = r"^(0(\.[0-9]{1,9})?|1(\.0{1,9})?)$"
MODEL_NAME_PATTERN = r"^[A-Za-z0-9]([-A-Za-z0-9._/:@+]*[A-Za-z0-9])?$"

_SECONDS_OF_UNIT = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class _PatternString(str):
    """A string with a pattern that parses itself: the text stays, the number is a property."""

    __slots__ = ()
    pattern = ""
    max_length = 0
    allowed = ""

    def __new__(cls, text: str) -> Self:
        if len(text) > cls.max_length or re.fullmatch(cls.pattern, text) is None:
            raise ValueError(f"{text!r} is not {cls.allowed}")
        return super().__new__(cls, text)

    @classmethod
    def _parse(cls, text: str) -> Self:
        try:
            return cls(text)
        except ValueError:
            raise PydanticCustomError(
                "not_in_pattern", "it must be {allowed}", {"allowed": cls.allowed}
            ) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls._parse, core_schema.str_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: Any) -> dict[str, object]:
        return {"type": "string", "pattern": cls.pattern, "maxLength": cls.max_length}


class Duration(_PatternString):
    """A span of time such as ``30s``, ``1h30m`` or ``500ms``."""

    __slots__ = ()
    pattern = DURATION_PATTERN
    max_length = 32
    allowed = "a duration such as 500ms, 30s or 1h30m"

    @property
    def seconds(self) -> float:
        """The span in seconds."""
        return parse_duration(self)


class Amount(_PatternString):
    """A decimal number that is not negative, written as a string: ``"0.15"``."""

    __slots__ = ()
    pattern = AMOUNT_PATTERN
    max_length = 19
    allowed = 'a decimal number in quotes, 0 or more, such as "0.15"'

    @property
    def number(self) -> float:
        """The value."""
        return float(self)


class Fraction(_PatternString):
    """A decimal number from 0 to 1, written as a string: ``"0.71"``."""

    __slots__ = ()
    pattern = FRACTION_PATTERN
    max_length = 11
    allowed = 'a decimal number in quotes from 0 to 1, such as "0.71"'

    @property
    def number(self) -> float:
        """The value."""
        return float(self)


def parse_duration(text: str) -> float:
    """The seconds of a duration such as ``1h30m``.

    Raises:
        ValueError: the text is not a duration.
    """
    if re.fullmatch(DURATION_PATTERN, text) is None:
        raise ValueError(f"{text!r} is not {Duration.allowed}")
    parts = re.findall(r"([0-9]+)(ms|h|m|s)", text)
    return sum(int(count) * _SECONDS_OF_UNIT[unit] for count, unit in parts)


PositiveDuration = Annotated[
    Duration,
    FieldRules(
        (
            CelRule(
                cel="duration(self) > duration('0s')",
                message="must be longer than 0s",
                holds=lambda duration: duration.seconds > 0,
            ),
        )
    ),
]
"""A duration above zero."""

NO_PARENT_FOLDER = FieldRules(
    (
        CelRule(
            cel="!self.startsWith('..') && !self.contains('/..')",
            message="must not go up with '..'",
            holds=lambda path: not path.startswith("..") and "/.." not in path,
        ),
    )
)
"""A path stays below where it starts."""

ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN, max_length=253)]
"""A name that clients ask for in the field ``model``."""
ObjectName = Annotated[str, Field(pattern=NAME_PATTERN, max_length=253)]
Namespace = Annotated[str, Field(pattern=LABEL_PATTERN, max_length=63)]


class ObjectMeta(ApiModel):
    """The metadata of an object, as Kubernetes keeps them."""

    name: ObjectName
    """Name of the object, unique among its kind in the namespace."""
    namespace: Namespace = DEFAULT_NAMESPACE
    """Namespace of the object."""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    generate_name: str | None = None
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[dict[str, Any], ...] = ()
    managed_fields: tuple[dict[str, Any], ...] = ()
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    """RFC 3339; absent in a file that was not applied yet."""
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    self_link: str | None = None

    @property
    def key(self) -> str:
        """``name`` in the namespace ``default``, else ``namespace/name``."""
        return object_key(self.namespace, self.name)


def object_key(namespace: str, name: str) -> str:
    """How tables and messages name an object: ``name`` in ``default``, else with its namespace."""
    return name if namespace == DEFAULT_NAMESPACE else f"{namespace}/{name}"


class LocalObjectReference(ApiModel):
    """An object of the same namespace."""

    name: ObjectName
    """Name of the object."""


class SecretKeyReference(ApiModel):
    """One key of a Secret in the same namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
    """Key inside the Secret."""


LABEL_KEY_PATTERN = (
    r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE_PATTERN, max_length=63)]


class LabelOperator(StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelRequirement(ApiModel):
    """A condition on one label."""

    cel_rules = (
        CelRule(
            cel=(
                "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : "
                "!has(self.values) || size(self.values) == 0"
            ),
            message="values must be given exactly when operator is In or NotIn",
            holds=lambda self: (
                (self.operator in (LabelOperator.IN, LabelOperator.NOT_IN)) == bool(self.values)
            ),
            field="values",
        ),
    )
    key: Annotated[str, Field(pattern=LABEL_KEY_PATTERN, max_length=317)]
    """The label's key."""
    operator: LabelOperator
    """How the label's value relates to ``values``."""
    values: Annotated[
        tuple[LabelValue, ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """The values; only with In and NotIn."""


class LabelSelector(ApiModel):
    """Which labels an object must have; an empty selector takes every object."""

    cel_rules = (
        CelRule(
            cel=(
                "!has(self.matchLabels) || self.matchLabels.all(k, k.matches("
                f"'{LABEL_KEY_PATTERN}'))"
            ),
            message="matchLabels must have keys that are labels, such as app or example.com/app",
            holds=lambda self: all(re.match(LABEL_KEY_PATTERN, key) for key in self.match_labels),
            field="matchLabels",
        ),
    )
    match_labels: Annotated[
        dict[str, LabelValue],
        Field(max_length=32, default_factory=dict),
    ]
    """Labels that must be there with these values."""
    match_expressions: Annotated[
        tuple[LabelRequirement, ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Conditions that must all hold."""

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(_requirement_holds(item, labels) for item in self.match_expressions)


def _requirement_holds(requirement: LabelRequirement, labels: dict[str, str]) -> bool:
    present = requirement.key in labels
    match requirement.operator:
        case LabelOperator.EXISTS:
            return present
        case LabelOperator.DOES_NOT_EXIST:
            return not present
        case LabelOperator.IN:
            return present and labels[requirement.key] in requirement.values
        case LabelOperator.NOT_IN:
            return not present or labels[requirement.key] not in requirement.values


class Condition(ApiModel):
    """One aspect of an object's state, as ``metav1.Condition``."""

    type: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]*$", max_length=64)]
    """Name of the condition in CamelCase."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=128)]
    """Why, in one CamelCase word that programs may rely on."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, in a sentence that names the next step."""
    last_transition_time: Annotated[
        str, Field(max_length=64, json_schema_extra={"format": "date-time"})
    ]
    """When the status last changed (RFC 3339)."""
    observed_generation: Annotated[StrictInt, Field(ge=0, le=2**53 - 1)] = 0
    """The generation of the object that this is about."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16), MapList("type")]
