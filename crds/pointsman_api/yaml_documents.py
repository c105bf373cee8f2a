"""YAML documents with the line of every field, read as Kubernetes reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pointsman_api.field_path import FieldPath

MAX_NODES = 100_000
"""Fields of one document; aliases count each time, so that a small file cannot grow huge."""
MAX_DEPTH = 64

_TOO_DEEP = f"a field lies deeper than {MAX_DEPTH} levels, or an alias contains itself"

_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class YamlError(Exception):
    """A document that cannot be read."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlDocument:
    """One document of a file."""

    value: Any
    """Plain mappings, lists, strings, numbers, booleans and None."""
    line: int
    """The line that it starts on, counted from 1."""
    lines: dict[FieldPath, int]
    """The line of each field and list item."""

    def line_of(self, path: FieldPath) -> int:
        """The line of a field, or of the nearest field above it that is there."""
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return line
        return self.line


class _Loader(yaml.SafeLoader):
    """Safe, without YAML 1.1's dates and base-60 numbers, and strict about keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                raise YamlError(line, f"the key {_text(key_node)} is not text: put it in quotes")
            if key_node.value in seen:
                raise YamlError(
                    line,
                    f"the key {key_node.value!r} is here twice (first on line "
                    f"{seen[key_node.value]}): remove one",
                )
            seen[key_node.value] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [item for item in resolvers if item[0] not in (_INT, _FLOAT, _TIMESTAMP)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT, re.compile(r"^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o?[0-7]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"),
    list("-+.0123456789"),
)


def read_documents(text: str) -> Iterator[YamlDocument]:
    """The documents of a YAML (or JSON) text; empty ones are left out.

    Raises:
        YamlError: the text is not YAML, a key is there twice, or a document is too large.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(
            line, f"this is not YAML: it has the character U+{ord(text[error.position]):04X}"
        ) from error
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            value = loader.construct_document(node)
            if value is None:
                continue
            lines: dict[FieldPath, int] = {}
            _collect_lines(node, (), lines)
            yield YamlDocument(value=value, line=node.start_mark.line + 1, lines=lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        problem = error.problem or "it cannot be read"
        raise YamlError(line, f"this is not YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise YamlError(1, f"this is not YAML: {error}") from error
    except RecursionError:
        raise YamlError(1, _TOO_DEEP) from None
    except ValueError as error:
        raise YamlError(1, f"a value cannot be read: {error}") from error
    finally:
        loader.dispose()


def _collect_lines(node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int]) -> None:
    if len(path) > MAX_DEPTH:
        raise YamlError(node.start_mark.line + 1, _TOO_DEEP)
    if len(lines) > MAX_NODES:
        raise YamlError(node.start_mark.line + 1, f"a document has more than {MAX_NODES} fields")
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            child = (*path, str(key_node.value))
            lines[child] = key_node.start_mark.line + 1
            _collect_lines(value_node, child, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            child = (*path, index)
            lines[child] = item.start_mark.line + 1
            _collect_lines(item, child, lines)


def _text(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else "of this mapping"
