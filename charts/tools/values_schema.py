"""values.schema.json from values.yaml: types from the defaults, descriptions from the comments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from charts.tools.value_types import TYPES, type_of

Path = tuple[str, ...]


class UndescribedValueError(ValueError):
    """A value of values.yaml has no comment above it, or a type is of no value; says which."""


def values_schema(text: str) -> dict[str, Any]:
    """The JSON schema of a values.yaml, closed against unknown names everywhere.

    Raises:
        UndescribedValueError: a value has no comment, or ``value_types`` names one that is gone.
    """
    values = yaml.safe_load(text)
    comments = comments_above(text)
    seen: set[Path] = set()
    schema = _object((), values, comments, seen)
    unused = sorted(
        pattern for pattern in TYPES if not any(type_of(path) is TYPES[pattern] for path in seen)
    )
    if unused:
        raise UndescribedValueError(
            f"charts/tools/value_types.py speaks of {', '.join(unused)}, which values.yaml lacks; "
            "remove them there"
        )
    # Helm hands the values of a parent chart to every chart below it.
    schema["properties"]["global"] = {
        "description": "Values that a parent chart shares with all of its charts; not used here.",
        "type": "object",
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart pointsman",
        **schema,
    }


def rendered_schema(text: str) -> str:
    """The text of values.schema.json for that of values.yaml."""
    return json.dumps(values_schema(text), indent=2) + "\n"


def comments_above(text: str) -> dict[Path, str]:
    """The comment above each name of a YAML mapping, lines joined, by the path of the name."""
    found: dict[Path, str] = {}
    lines = text.splitlines()
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        return found

    def visit(node: yaml.MappingNode, path: Path) -> None:
        for key, value in node.value:
            here = (*path, str(key.value))
            words: list[str] = []
            line = key.start_mark.line - 1
            while line >= 0 and lines[line].strip().startswith("#"):
                words.insert(0, lines[line].strip().lstrip("#").strip())
                line -= 1
            found[here] = " ".join(words)
            if isinstance(value, yaml.MappingNode):
                visit(value, here)

    visit(root, ())
    return found


def _object(
    path: Path, values: Mapping[str, Any], comments: Mapping[Path, str], seen: set[Path]
) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: _value((*path, name), value, comments, seen) for name, value in values.items()
        },
    }


def _value(path: Path, value: Any, comments: Mapping[Path, str], seen: set[Path]) -> dict[str, Any]:
    seen.add(path)
    comment = comments.get(path, "")
    fragment = type_of(path)
    if fragment is None and isinstance(value, dict):
        # A group of values: its name says what it is, and its members have comments.
        described = {"description": comment} if comment else {}
        return {**described, **_object(path, value, comments, seen)}
    if not comment:
        raise UndescribedValueError(
            f"values.yaml: {'.'.join(path)} has no comment; say above it what it does"
        )
    return {"description": comment, **(fragment or _inferred(path, value)), "default": value}


def _inferred(path: Path, value: Any) -> Mapping[str, Any]:
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer", "minimum": 0}
    if isinstance(value, str):
        return {"type": "string"}
    raise UndescribedValueError(
        f"values.yaml: {'.'.join(path)} is {value!r}, whose type its default does not tell; "
        "say it in charts/tools/value_types.py"
    )
