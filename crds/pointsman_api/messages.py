"""What is said about a wrong field: what is wrong, what is allowed, what to do next."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pointsman_api.backend import URL_PATTERN
from pointsman_api.meta import (
    AMOUNT_PATTERN,
    DURATION_PATTERN,
    FRACTION_PATTERN,
    LABEL_PATTERN,
    MODEL_NAME_PATTERN,
    NAME_PATTERN,
    Amount,
    Duration,
    Fraction,
)
from pointsman_api.modelpool import POOL_NAME_PATTERN
from pointsman_api.rules import DUPLICATE_ITEM, RULE_BROKEN

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from pointsman_api.field_path import FieldPath

Schema = Mapping[str, Any]

_SHOWN_LENGTH = 80

_FORMS = {
    NAME_PATTERN: "lower-case letters, digits, '-' and '.', letters or digits at both ends",
    LABEL_PATTERN: "lower-case letters, digits and '-', letters or digits at both ends",
    POOL_NAME_PATTERN: "lower-case letters, digits and '-', a letter first, no '-' at the end",
    MODEL_NAME_PATTERN: (
        "letters, digits and any of - . _ / : @ +, letters or digits at both ends"
    ),
    URL_PATTERN: "http://HOST or https://HOST, with :PORT and a /PATH where needed",
    DURATION_PATTERN: Duration.allowed,
    AMOUNT_PATTERN: Amount.allowed,
    FRACTION_PATTERN: Fraction.allowed,
}

_WRONG = {
    "missing": "is missing",
    "greater_than_equal": "is too small",
    "less_than_equal": "is too large",
    "string_type": "is not text",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "bool_type": "is not true or false",
    "enum": "is not a known value",
    "literal_error": "is not a known value",
    "string_pattern_mismatch": "does not have the right form",
    "not_in_pattern": "does not have the right form",
    "string_too_short": "is too short",
    "string_too_long": "is too long",
    "too_short": "has too few items",
    "too_long": "has too many items",
    "model_type": "is not a mapping",
    "model_attributes_type": "is not a mapping",
    "dict_type": "is not a mapping",
    "tuple_type": "is not a list",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldProblem:
    """What is wrong with one field."""

    path: FieldPath
    value: str
    """The value as the file has it, shortened; empty where there is none."""
    message: str
    allowed: str = ""
    next_step: str = ""


def field_problems(error: ErrorDetails, schema: Schema) -> Iterator[FieldProblem]:
    """What one of pydantic's errors says about the file's fields.

    Args:
        error: an item of ``ValidationError.errors()``.
        schema: the structural schema of the whole object.
    """
    path, value, context = error["loc"], error["input"], error.get("ctx", {})
    if error["type"] == RULE_BROKEN:
        for field, message in context["broken"]:
            yield _broken_rule(path, value, field, message)
    elif error["type"] == DUPLICATE_ITEM:
        key = (context["field"],) if context["field"] else ()
        yield FieldProblem(
            path=(*path, context["index"], *key),
            value=shown(context["key"]),
            message=f"is here twice (item {context['first']} has it too)",
            next_step="rename or remove one of the two",
        )
    elif error["type"] == "too_short" and len(value) >= context["min_length"]:
        return  # The list is long enough: it counts as short because some of its items are wrong.
    elif error["type"] == "extra_forbidden":
        yield _unknown_field(path, value, schema)
    else:
        node = schema_at(schema, path)
        yield FieldProblem(
            path=path,
            value="" if error["type"] == "missing" else shown(value),
            message=_WRONG.get(error["type"], error["msg"]),
            allowed=describe(node),
            next_step=_next_step(error["type"], value, node),
        )


def null_problem(path: FieldPath, schema: Schema) -> FieldProblem:
    """A field that is written down without a value."""
    return FieldProblem(
        path=path,
        value="null",
        message="has no value",
        allowed=describe(schema_at(schema, path)),
        next_step="give it a value or leave the field out",
    )


def shown(value: object) -> str:
    """A value as a message shows it: JSON, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 1]}…"


def did_you_mean(word: object, known: list[str]) -> str:
    """A question with the closest known word, or nothing."""
    by_lower = {item.lower(): item for item in known}
    close = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1)
    return f"did you mean {by_lower[close[0]]}?" if close else ""


def schema_at(schema: Schema, path: FieldPath) -> Schema:
    """The part of a structural schema that describes a field; empty where nothing does."""
    node: Schema = schema
    for part in path:
        child = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
        if child is None:
            child = node.get("additionalProperties")
        if not isinstance(child, Mapping):
            return {}
        node = child
    return node


def describe(node: Schema) -> str:
    """What a schema allows, in words; empty where it says nothing."""
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}" if len(node["enum"]) > 1 else node["enum"][0]
    if node.get("x-kubernetes-int-or-string"):
        return 'a number of replicas such as 1, or a percentage from "0%" to "100%"'
    match node.get("type"):
        case "integer":
            if "minimum" not in node or "maximum" not in node:
                return "a whole number"
            return f"a whole number from {node['minimum']} to {node['maximum']}"
        case "boolean":
            return "true or false"
        case "string":
            return _describe_string(node)
        case "array":
            least, most = node.get("minItems", 0), node.get("maxItems")
            return f"a list of {least} to {most} items" if most else "a list"
        case "object" if "properties" in node:
            return f"a mapping with the fields {', '.join(node['properties'])}"
        case "object":
            return "a mapping"
    return ""


def _describe_string(node: Schema) -> str:
    pattern = node.get("pattern")
    length = f"at most {node['maxLength']} characters" if "maxLength" in node else ""
    if pattern is None:
        return f"text of {length}" if length else "text"
    form = _FORMS.get(pattern, f"text of the form {pattern}")
    return (
        form
        if pattern in (DURATION_PATTERN, AMOUNT_PATTERN, FRACTION_PATTERN)
        else (f"{form}; {length}")
    )


def _broken_rule(path: FieldPath, value: object, field: str, message: str) -> FieldProblem:
    own = str(path[-1]) if path and not field else field
    if field:
        path = (*path, field)
        value = value.get(field) if isinstance(value, Mapping) else None
    return FieldProblem(
        path=path,
        value="" if value is None else shown(value),
        message=message.removeprefix(own).strip(),
    )


def _unknown_field(path: FieldPath, value: object, schema: Schema) -> FieldProblem:
    known = sorted(schema_at(schema, path[:-1]).get("properties", {}))
    return FieldProblem(
        path=path,
        value=shown(value),
        message="is not a field of this object",
        allowed=", ".join(known),
        next_step=did_you_mean(path[-1], known) or "remove it",
    )


def _lacks_unit(value: object, node: Schema) -> bool:
    """Whether a span of time is a number without a unit."""
    if node.get("pattern") != DURATION_PATTERN or isinstance(value, bool):
        return False
    return isinstance(value, (int, float)) or (isinstance(value, str) and value.isdigit())


def _next_step(kind: str, value: object, node: Schema) -> str:
    if kind == "missing":
        return "add it"
    if _lacks_unit(value, node):
        return f"did you mean {value}s?"
    if kind in ("string_type", "not_in_pattern") and isinstance(value, (int, float)):
        return f'put it in quotes: "{json.dumps(value)}"'
    if kind == "int_type" and isinstance(value, str) and value.lstrip("-").isdigit():
        return f"remove the quotes: {value}"
    if kind in ("enum", "literal_error"):
        return did_you_mean(value, list(node.get("enum", ())))
    return ""
