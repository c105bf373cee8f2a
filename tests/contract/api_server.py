"""What the API server does with an object and a CRD's schema: defaults, types, CEL rules.

Enough of it to compare its answers with those of the Python types.
"""

from __future__ import annotations

import copy
import functools
import re
from typing import TYPE_CHECKING, Any

import celpy
import jsonschema

if TYPE_CHECKING:
    from collections.abc import Iterator

Schema = dict[str, Any]

CEL_RESERVED = ("namespace", "in", "as", "const", "import", "package", "return", "void")
"""Words that CEL keeps for itself and that fields are named after: written ``__word__``."""

INTEGER_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
"""What an integer of a format can be: the API server refuses the others, bounds or none."""
EXACT = 2**53
"""Beyond this a float, which is what bounds are to the API server, leaves out numbers."""


def rules_of(schema: Schema) -> Iterator[tuple[str, str]]:
    """Every rule of a schema as (expression, message)."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield rule["rule"], rule["message"]
    for child in children_of(schema):
        yield from rules_of(child)


def children_of(schema: Schema) -> Iterator[Schema]:
    yield from schema.get("properties", {}).values()
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield schema[name]


def defaulted(value: Any, schema: Schema) -> Any:
    """The value with the schema's defaults filled in, from the outside inwards."""
    value = copy.deepcopy(value)
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                value[name] = defaulted(value[name], child)
    elif isinstance(value, list) and "items" in schema:
        value = [defaulted(item, schema["items"]) for item in value]
    return value


def problems(value: Any, schema: Schema) -> list[str]:
    """Why the API server refuses the value (as ``kubectl apply --validate=strict`` sees it)."""
    value = defaulted(value, schema)
    validator = jsonschema.Draft202012Validator(_strict(schema))
    found = [error.message for error in validator.iter_errors(value)]
    # The API server evaluates rules only on objects of the right shape.
    return found or list(_broken_rules(value, schema))


def _strict(schema: Schema) -> Schema:
    """A JSON schema that refuses unknown fields, nulls and equal items."""
    strict = {key: item for key, item in schema.items() if not key.startswith("x-")}
    if "properties" in schema:
        strict["properties"] = {
            name: _strict(child) for name, child in schema["properties"].items()
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    if "items" in schema:
        strict["items"] = _strict(schema["items"])
    if schema.get("type") == "integer" and schema.get("format") in INTEGER_RANGES:
        least, most = INTEGER_RANGES[schema["format"]]
        strict["minimum"] = max(least, schema.get("minimum", least))
        strict["maximum"] = min(most, schema.get("maximum", most))
    if schema.get("x-kubernetes-int-or-string"):
        # A pattern speaks of strings and bounds of numbers only; Python's booleans are neither.
        strict["not"] = {"type": "boolean"}
    if schema.get("x-kubernetes-list-type") == "set":
        strict["uniqueItems"] = True
    return strict


def _broken_rules(value: Any, schema: Schema) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not holds(rule["rule"], value):
            yield rule["message"]
    if schema.get("x-kubernetes-list-type") == "map":
        keys = [tuple(item[key] for key in schema["x-kubernetes-list-map-keys"]) for item in value]
        if len(set(keys)) < len(keys):
            yield "Duplicate value"
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                yield from _broken_rules(value[name], child)
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            yield from _broken_rules(item, schema["items"])


def holds(expression: str, value: Any, old: Any = None) -> bool:
    """Whether a CEL rule holds; an error in it counts as no, as on the API server."""
    context = {"self": celpy.json_to_cel(_escaped(value))}
    if old is not None:
        context["oldSelf"] = celpy.json_to_cel(_escaped(old))
    try:
        return bool(_program(expression).evaluate(context))
    except celpy.CELEvalError:
        return False


@functools.cache
def _program(expression: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            (f"__{name}__" if name in CEL_RESERVED else name): _escaped(child)
            for name, child in value.items()
        }
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value


def used_reserved_words(expression: str) -> list[str]:
    """Field selections that CEL cannot parse, such as ``.namespace``."""
    return [word for word in CEL_RESERVED if re.search(rf"\.{word}\b", expression)]
