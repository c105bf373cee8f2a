"""How the contract states what must hold: once, for the API server (CEL) and for Python.

A model lists its :class:`CelRule` s. The generator writes them into the CRD as
``x-kubernetes-validations``; the base class evaluates the same rules when an object is parsed,
so that ``pointsman validate`` and the API server give the same answers.
"""

from __future__ import annotations

import keyword
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

if TYPE_CHECKING:
    from collections.abc import Callable

RULE_BROKEN = "rule_broken"
"""Type of the error that a broken rule raises; its context holds every broken rule."""

DUPLICATE_ITEM = "duplicate_item"
"""Type of the error that two equal items of a set or map list raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CelRule:
    """One validation rule in its two forms."""

    cel: str
    """The expression, over ``self`` (and ``oldSelf`` in a transition rule)."""
    message: str
    """What must be, as a phrase that starts with the field's name."""
    holds: Callable[[Any], bool] | None = None
    """The same in Python, over the parsed value; None for a transition rule."""
    field: str = ""
    """The field that the message is about, as YAML names it; empty: the value itself."""

    def document(self) -> dict[str, str]:
        """The rule as the CRD states it."""
        document = {"rule": self.cel, "message": self.message}
        if self.field:
            document["fieldPath"] = f".{self.field}"
        return document


def union_rule(discriminator: str, value: str, member: str, *, required: bool = True) -> CelRule:
    """The rule of one union member: it is set exactly (or only) when the discriminator names it."""
    snake_member = _snake(member)
    snake_discriminator = _snake(discriminator)

    def holds(model: Any) -> bool:
        named = getattr(model, snake_discriminator) == value
        present = getattr(model, snake_member) is not None
        return named == present if required else named or not present

    condition = f"self.{discriminator} == '{value}'"
    if required:
        return CelRule(
            cel=f"{condition} ? has(self.{member}) : !has(self.{member})",
            message=f"{member} must be set exactly when {discriminator} is {value}",
            holds=holds,
            field=member,
        )
    return CelRule(
        cel=f"{condition} || !has(self.{member})",
        message=f"{member} may be set only when {discriminator} is {value}",
        holds=holds,
        field=member,
    )


def immutable_rule(name: str) -> CelRule:
    """The transition rule of a field that never changes."""
    return CelRule(cel="self == oldSelf", message=f"{name} is immutable: make a new object instead")


def broken_rules(rules: tuple[CelRule, ...], value: Any) -> list[CelRule]:
    """The rules that a parsed value breaks; transition rules need two values and are left out."""
    return [rule for rule in rules if rule.holds is not None and not rule.holds(value)]


def raise_broken(broken: list[CelRule]) -> None:
    """Raise one error that carries every broken rule, if there is any."""
    if broken:
        raise PydanticCustomError(
            RULE_BROKEN,
            "{message}",
            {
                "message": "; ".join(rule.message for rule in broken),
                "broken": [(rule.field, rule.message) for rule in broken],
            },
        )


class ApiModel(BaseModel):
    """Base of the contract's types: camelCase outside, unknown fields forbidden, frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        validate_default=False,
    )
    cel_rules: ClassVar[tuple[CelRule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        raise_broken(broken_rules(self.cel_rules, self))
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        document = handler(schema)
        if cls.cel_rules:
            handler.resolve_ref_schema(document)["x-kubernetes-validations"] = [
                rule.document() for rule in cls.cel_rules
            ]
        return document


@dataclass(frozen=True, slots=True)
class FieldRules:
    """Annotation: rules of one field's value."""

    rules: tuple[CelRule, ...]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        raise_broken(broken_rules(self.rules, value))
        return value

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        document = dict(handler(schema))
        document["x-kubernetes-validations"] = [rule.document() for rule in self.rules]
        return document


@dataclass(frozen=True, slots=True)
class MapList:
    """Annotation: the items of a list are told apart by one of their fields."""

    key: str
    """The field, as YAML names it."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        _refuse_duplicates([getattr(item, _snake(self.key)) for item in items], self.key)
        return items

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        document = dict(handler(schema))
        document["x-kubernetes-list-type"] = "map"
        document["x-kubernetes-list-map-keys"] = [self.key]
        return document


@dataclass(frozen=True, slots=True)
class SetList:
    """Annotation: the items of a list, scalars, are all different."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        _refuse_duplicates(list(items), "")
        return items

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        document = dict(handler(schema))
        document["x-kubernetes-list-type"] = "set"
        return document


def _refuse_duplicates(keys: list[Any], field: str) -> None:
    for index, key in enumerate(keys):
        first = keys.index(key)
        if first != index:
            raise PydanticCustomError(
                DUPLICATE_ITEM,
                "'{key}' is here twice: items {first} and {index} of this list",
                {"key": str(key), "first": first, "index": index, "field": field},
            )


def _snake(camel: str) -> str:
    """The Python attribute of a YAML field; one that is a keyword gets an underscore."""
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in camel)
    return f"{name}_" if keyword.iskeyword(name) else name
