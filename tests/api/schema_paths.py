"""Every place of a CRD's schema, and objects that break exactly what is said there."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
Path = tuple[str, ...]
"""Fields from the outside inwards; ``ITEM`` for each item of a list."""

ITEM = "[]"
_WRONG_STRINGS = ("0", "-", "/", "..", "a b", "UPPER_case", "!", "a" * 20, "")
_TIME = "2026-11-28T10:00:00Z"
_RIGHT_STRINGS = ("a", "A", "1", "1s", "0.5", "a/b", "/a", "s3://abc", "https://a.example", _TIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One field, or the items of a list, with its schema."""

    path: Path
    schema: Schema
    required: bool

    @property
    def field(self) -> str:
        """As the API server names it when it is the first of every list: ``spec.rules[0].name``."""
        return field_name(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One bound of a place: a value beyond it, and how the server names the fault."""

    place: Place
    keyword: str
    broken: Any
    """A value just outside; ``ABSENT`` to leave a required field out."""
    reason: str
    kept: Any = None
    """A value just inside; None where there is no nearest one."""

    @property
    def name(self) -> str:
        """For the test's id."""
        return f"{'.'.join(self.place.path)}:{self.keyword}"


ABSENT = object()


def field_name(path: Path) -> str:
    """A path in the API server's words, at the first item of each list."""
    return ".".join(path).replace(f".{ITEM}", "[0]")


def without_indexes(field: str) -> str:
    """A field of the server's words with every index left out: ``spec.rules[].name``."""
    return re.sub(r"\[[^\]]*\]", ITEM, field)


def places(schema: Schema, path: Path = (), *, required: bool = False) -> Iterator[Place]:
    """All places of a schema, the outer before the inner."""
    yield Place(path=path, schema=schema, required=required)
    for name, child in schema.get("properties", {}).items():
        yield from places(child, (*path, name), required=name in schema.get("required", ()))
    if isinstance(schema.get("items"), dict):
        yield from places(schema["items"], (*path, ITEM))


def rule_fields(schema: Schema) -> dict[str, set[str]]:
    """Of each rule's message, the fields that a refusal by it may name, without indexes."""
    found: dict[str, set[str]] = {}
    for place in places(schema):
        for rule in place.schema.get("x-kubernetes-validations", ()):
            field = without_indexes(place.field) + rule.get("fieldPath", "")
            found.setdefault(rule["message"], set()).add(field)
    return found


def bounds(place: Place) -> Iterator[Bound]:
    """All bounds of one place."""
    schema = place.schema
    if place.required:
        yield Bound(place=place, keyword="required", broken=ABSENT, reason="FieldValueRequired")
    for keyword, broken, reason, kept in (
        *_type_bounds(schema),
        *_number_bounds(schema),
        *_text_bounds(schema),
        *_size_bounds(schema),
    ):
        yield Bound(place=place, keyword=keyword, broken=broken, reason=reason, kept=kept)


_Found = tuple[str, Any, str, Any]


def _type_bounds(schema: Schema) -> Iterator[_Found]:
    if schema.get("x-kubernetes-int-or-string"):
        yield "int-or-string", [], "FieldValueTypeInvalid", None
    elif kind := schema.get("type"):
        broken = {"object": "text", "array": {}, "string": 1, "integer": "1", "boolean": "true"}
        yield "type", broken[kind], "FieldValueTypeInvalid", None


def _number_bounds(schema: Schema) -> Iterator[_Found]:
    if "minimum" in schema:
        yield "minimum", schema["minimum"] - 1, "FieldValueInvalid", schema["minimum"]
    if "maximum" in schema:
        yield "maximum", schema["maximum"] + 1, "FieldValueInvalid", schema["maximum"]


def _text_bounds(schema: Schema) -> Iterator[_Found]:
    if "enum" in schema:
        yield "enum", "NoSuchValue", "FieldValueNotSupported", schema["enum"][0]
    if schema.get("format") == "date-time":
        yield "format", "yesterday", "FieldValueTypeInvalid", _TIME
    if least := schema.get("minLength"):
        yield "minLength", "a" * (least - 1), "FieldValueInvalid", "a" * least
    if "maxLength" in schema:
        most = schema["maxLength"]
        yield "maxLength", "a" * (most + 1), "FieldValueTooLong", "a" * most
    if "pattern" in schema:
        most = schema.get("maxLength", 100)
        wrong = [text for text in _WRONG_STRINGS if len(text) <= most]
        broken = next(text for text in wrong if not re.search(schema["pattern"], text))
        yield "pattern", broken, "FieldValueInvalid", None


def _size_bounds(schema: Schema) -> Iterator[_Found]:
    if "items" in schema:
        item = minimal(schema["items"])
        if least := schema.get("minItems"):
            yield "minItems", [item] * (least - 1), "FieldValueInvalid", [item] * least
        if "maxItems" in schema:
            most = schema["maxItems"]
            yield "maxItems", [item] * (most + 1), "FieldValueTooMany", [item] * most
        if schema.get("x-kubernetes-list-type") in ("set", "map"):
            yield "duplicates", [item, item], "FieldValueDuplicate", None
    if "maxProperties" in schema:
        most = schema["maxProperties"]
        value = minimal(schema.get("additionalProperties", {}))
        many = {f"key-{number}": value for number in range(most + 1)}
        few = dict(list(many.items())[:most])
        yield "maxProperties", many, "FieldValueTooMany", few


def minimal(schema: Schema) -> Any:
    """A small value of the right shape; rules between fields may not hold of it."""
    if "default" in schema:
        return copy.deepcopy(schema["default"])
    if schema.get("x-kubernetes-int-or-string"):
        return 1
    match schema.get("type"):
        case "object":
            needed = schema.get("required", ())
            return {name: minimal(schema["properties"][name]) for name in needed}
        case "array":
            return [minimal(schema["items"])] * schema.get("minItems", 0)
        case "integer":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case _:
            return schema["enum"][0] if "enum" in schema else _text(schema)


def _text(schema: Schema) -> str:
    least = schema.get("minLength", 0)
    if "pattern" not in schema:
        return _TIME if schema.get("format") == "date-time" else "a" * least
    for text in _RIGHT_STRINGS:
        if re.search(schema["pattern"], text):
            return text
    raise LookupError(f"add a text that fits to _RIGHT_STRINGS: {schema['pattern']}")


def with_value(document: Any, schema: Schema, path: Path, value: Any) -> Any:
    """A copy of the document with the value at the path, at the first item of each list.

    What lies on the way and is not there is made.
    """
    if not path:
        return value
    result = copy.deepcopy(document)
    head, rest = path[0], path[1:]
    if head == ITEM:
        result = list(result) or [minimal(schema["items"])]
        result[0] = with_value(result[0], schema["items"], rest, value)
    elif not rest and value is ABSENT:
        result.pop(head, None)
    else:
        child = schema["properties"][head]
        before = result[head] if head in result else minimal(child)
        result[head] = with_value(before, child, rest, value)
    return result
