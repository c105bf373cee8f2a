"""The rules that Kubernetes has for structural schemas, and those that this project adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.contract.api_server import EXACT, INTEGER_RANGES, children_of, used_reserved_words

if TYPE_CHECKING:
    from collections.abc import Iterator

ALLOWED_KEYS = {
    "type",
    "format",
    "description",
    "properties",
    "additionalProperties",
    "items",
    "required",
    "enum",
    "pattern",
    "default",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "anyOf",
    "x-kubernetes-validations",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
}


def faults(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Why a schema (spec or status of a CRD) is not structural or not bounded."""
    for message in _faults_here(schema):
        yield f"{path or '.'}: {message}"
    for name, child in schema.get("properties", {}).items():
        yield from faults(child, f"{path}.{name}")
    if "items" in schema:
        yield from faults(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from faults(schema["additionalProperties"], f"{path}{{}}")


def _faults_here(schema: dict[str, Any]) -> Iterator[str]:
    unknown = set(schema) - ALLOWED_KEYS
    if unknown:
        yield f"keys that a structural schema has no room for: {sorted(unknown)}"
    if "properties" in schema and "additionalProperties" in schema:
        yield "properties and additionalProperties exclude each other"
    for rule in schema.get("x-kubernetes-validations", ()):
        if not rule["message"]:
            yield "a rule without a message"
        words = used_reserved_words(rule["rule"])
        if words:
            yield f"a rule selects fields named after words of CEL: {words}"
        field = rule.get("fieldPath", "").removeprefix(".")
        if field and field not in schema["properties"]:
            yield f"a rule points to the unknown field {field}"
    missing = set(schema.get("required", ())) - set(schema.get("properties", {}))
    if missing:
        yield f"required but not there: {sorted(missing)}"
    if schema.get("x-kubernetes-int-or-string"):
        if "type" in schema or schema.get("anyOf") != [{"type": "integer"}, {"type": "string"}]:
            yield "int-or-string wants no type and exactly anyOf integer, string"
        return
    if "anyOf" in schema:
        yield "anyOf outside int-or-string"
    match schema.get("type"):
        case "string":
            if "enum" not in schema and "maxLength" not in schema:
                yield "a string without maxLength"
        case "integer":
            yield from _number_faults(schema)
        case "array":
            yield from _list_faults(schema)
        case "object":
            free = schema.get("x-kubernetes-preserve-unknown-fields")
            if "properties" not in schema and not free and "maxProperties" not in schema:
                yield "a map without maxProperties"
        case "boolean":
            pass
        case other:
            yield f"type {other!r}"


def _number_faults(schema: dict[str, Any]) -> Iterator[str]:
    if not {"minimum", "maximum", "format"} <= set(schema):
        yield "a number without bounds or format"
        return
    if schema["format"] not in INTEGER_RANGES:
        yield f"format {schema['format']!r} of an integer"
        return
    least, most = INTEGER_RANGES[schema["format"]]
    for name in ("minimum", "maximum", "default"):
        if not least <= schema.get(name, 0) <= most:
            yield f"{name} {schema[name]} is no {schema['format']}"
        elif abs(schema.get(name, 0)) > EXACT:
            yield f"{name} {schema[name]} is no exact number where JSON is read as floats"


def _list_faults(schema: dict[str, Any]) -> Iterator[str]:
    if "maxItems" not in schema:
        yield "a list without maxItems"
    items = schema.get("items", {})
    match schema.get("x-kubernetes-list-type"):
        case "atomic":
            pass
        case "set":
            if items.get("type") not in ("string", "integer"):
                yield "a set of items that are not scalars"
        case "map":
            keys = schema.get("x-kubernetes-list-map-keys", [])
            for key in keys:
                child = items.get("properties", {}).get(key, {})
                if child.get("type") not in ("string", "integer"):
                    yield f"the key {key} is no scalar field of the items"
                if key not in items.get("required", ()) and "default" not in child:
                    yield f"the key {key} is neither required nor defaulted"
            if not keys:
                yield "a map list without keys"
        case other:
            yield f"list type {other!r}"


def undocumented(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Fields without a description."""
    for name, child in schema.get("properties", {}).items():
        if not child.get("description"):
            yield f"{path}.{name}"
        yield from undocumented(child, f"{path}.{name}")
    for child in children_of({"items": schema.get("items")}):
        yield from undocumented(child, f"{path}[]")


def estimated_cost(schema: dict[str, Any], repeats: int = 1) -> Iterator[tuple[str, int]]:
    """How often each rule may run on one object, by rule."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield rule["rule"], repeats
    for child in schema.get("properties", {}).values():
        yield from estimated_cost(child, repeats)
    if "items" in schema:
        yield from estimated_cost(schema["items"], repeats * schema["maxItems"])
