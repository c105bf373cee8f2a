"""ModelPools and RoutePolicies from YAML files, with everything wrong said at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pointsman_api.compile import RouteProblem, check_objects
from pointsman_api.conditions import Reason
from pointsman_api.field_path import FieldPath, field_text
from pointsman_api.messages import (
    FieldProblem,
    did_you_mean,
    field_problems,
    null_problem,
    shown,
)
from pointsman_api.meta import API_VERSION, DEFAULT_NAMESPACE, GROUP, object_key
from pointsman_api.modelpool import ModelPool
from pointsman_api.routepolicy import RoutePolicy
from pointsman_api.schema import object_schema
from pointsman_api.yaml_documents import YamlDocument, YamlError, read_documents

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_KINDS: dict[str, type[ModelPool] | type[RoutePolicy]] = {
    "ModelPool": ModelPool,
    "RoutePolicy": RoutePolicy,
}
_SUFFIXES = (".yaml", ".yml", ".json")
_MAX_FILE_BYTES = 4 * 1024 * 1024
_FREE_FORM = ("spec", "backend", "rayServe", "template", "spec")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestError:
    """One thing that is wrong in one file."""

    path: Path
    line: int
    """Counted from 1."""
    item: str = ""
    """The object, such as ``ModelPool smollm2``; empty where the file is not that far readable."""
    field: str = ""
    """Such as ``spec.rules[0].targets[1].weight``; empty where it is about the whole object."""
    value: str = ""
    """What the field says, as JSON, shortened; empty where it says nothing."""
    message: str
    """What is wrong, as a phrase that follows the field and the value."""
    allowed: str = ""
    """What the field may say."""
    next_step: str = ""

    def __str__(self) -> str:
        subject = " ".join(part for part in (self.field, self.value) if part)
        text = f"{self.path}:{self.line}: {f'{subject} ' if subject else ''}{self.message}"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        return f"{text}; {self.next_step}" if self.next_step else text


class ManifestErrors(Exception):  # noqa: N818 - it holds several
    """Everything that is wrong in the files, ordered by file and line."""

    def __init__(self, errors: Iterable[ManifestError]) -> None:
        self.errors = tuple(sorted(errors, key=lambda item: (str(item.path), item.line)))
        super().__init__("\n".join(map(str, self.errors)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """What the files say."""

    pools: tuple[ModelPool, ...]
    policies: tuple[RoutePolicy, ...]
    namespace_labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Labels of the Namespaces that the files hold, for :func:`compile_route_table`."""
    skipped: tuple[str, ...] = ()
    """Objects of other API groups, such as ``Secret hf (v1) in secret.yaml:1``."""
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)
    """Where each object stands, by kind and key."""

    def error(
        self,
        item: ModelPool | RoutePolicy,
        path: FieldPath,
        *,
        message: str,
        value: object = None,
        allowed: str = "",
        next_step: str = "",
    ) -> ManifestError:
        """An error about a field of an object that was read, such as a folder that is missing."""
        return self.origins[item.kind, item.key].error(
            FieldProblem(
                path=path,
                value="" if value is None else shown(value),
                message=message,
                allowed=allowed,
                next_step=next_step,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The place of an object in a file."""

    path: Path
    document: YamlDocument
    item: str

    def error(self, problem: FieldProblem) -> ManifestError:
        """A problem of this object with its file and line."""
        return ManifestError(
            path=self.path,
            line=self.document.line_of(problem.path),
            item=self.item,
            field=field_text(problem.path),
            value=problem.value,
            message=problem.message,
            allowed=problem.allowed,
            next_step=problem.next_step,
        )


def load_manifests(paths: Sequence[Path]) -> Manifests:
    """Read files and folders (their ``.yaml``, ``.yml`` and ``.json`` files, not deeper).

    Raises:
        ManifestErrors: with every error of every file: YAML that cannot be read, unknown or wrong
            fields, objects or model names that are there twice, pools that are missing.
    """
    errors: list[ManifestError] = []
    reading = _Reading(errors=errors)
    for path in _files(paths, errors):
        _read_file(path, reading)
    errors += reading.cross_errors()
    if not errors and not reading.pools and not reading.policies:
        errors.append(
            ManifestError(
                path=Path(paths[0]) if paths else Path(),
                line=1,
                message="has no ModelPool and no RoutePolicy",
                next_step="name a file or folder that has some",
            )
        )
    if errors:
        raise ManifestErrors(errors)
    return Manifests(
        pools=tuple(reading.pools),
        policies=tuple(reading.policies),
        namespace_labels=reading.namespace_labels,
        skipped=tuple(reading.skipped),
        origins=reading.origins,
    )


@dataclass(slots=True, kw_only=True)
class _Reading:
    """What was read so far."""

    errors: list[ManifestError]
    pools: list[ModelPool] = field(default_factory=list)
    policies: list[RoutePolicy] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)
    namespace_labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """From Namespaces that stand beside our objects, for allowedRoutes with a selector."""
    broken_pools: set[str] = field(default_factory=set)
    """Keys of pools that are there but wrong: nobody is told that they are missing."""

    def cross_errors(self) -> Iterator[ManifestError]:
        """What is wrong between the objects."""
        problems = check_objects(self.pools, self.policies, namespace_labels=self.namespace_labels)
        for problem in problems:
            missing = problem.reason == Reason.POOL_NOT_FOUND
            if not (missing and problem.value in self.broken_pools):
                yield self._located(problem)

    def _located(self, problem: RouteProblem) -> ManifestError:
        return self.origins[problem.kind, problem.key].error(
            FieldProblem(
                path=problem.field,
                value=shown(problem.value),
                message=f"cannot be used: {problem.message}",
            )
        )


def _files(paths: Sequence[Path], errors: list[ManifestError]) -> Iterator[Path]:
    for path in dict.fromkeys(map(Path, paths)):
        if path.is_dir():
            found = sorted(item for item in path.iterdir() if item.suffix in _SUFFIXES)
            if not found:
                errors.append(
                    ManifestError(
                        path=path,
                        line=1,
                        message="is a folder without any .yaml, .yml or .json file",
                        next_step="name a file or folder that has some",
                    )
                )
            yield from found
        else:
            yield path


def _read_file(path: Path, reading: _Reading) -> None:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise YamlError(1, f"the file is larger than {_MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        for document in read_documents(text):
            _read_object(path, document, reading)
    except YamlError as problem:
        reading.errors.append(ManifestError(path=path, line=problem.line, message=problem.message))
    except UnicodeDecodeError:
        reading.errors.append(ManifestError(path=path, line=1, message="the file is not UTF-8"))
    except OSError as error:
        reading.errors.append(
            ManifestError(
                path=path,
                line=1,
                message=f"the file cannot be read: {error.strerror}",
                next_step="check the path",
            )
        )


def _read_object(path: Path, document: YamlDocument, reading: _Reading) -> None:
    value = document.value
    origin = Origin(path=path, document=document, item=_item_text(value))
    problem = _wrong_kind(value)
    if problem is not None:
        reading.errors.append(origin.error(problem))
        return
    kind, version = value["kind"], value["apiVersion"]
    if kind not in _KINDS:
        reading.skipped.append(f"{origin.item} ({version}) in {path}:{document.line}")
        if (kind, version) == ("Namespace", "v1"):
            _note_labels(value, reading)
        return
    schema = object_schema(kind)
    problems = [null_problem(nulls, schema) for nulls in _nulls(value, ())]
    nulls = {problem.path for problem in problems}
    try:
        parsed = _KINDS[kind].model_validate(value)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            problems += [item for item in field_problems(details, schema) if item.path not in nulls]
        parsed = None
    if problems or parsed is None:
        reading.errors.extend(map(origin.error, problems))
        if kind == "ModelPool":
            reading.broken_pools.add(_raw_key(value))
        return
    first = reading.origins.get((kind, parsed.key))
    if first is not None:
        where = f"{first.path}:{first.document.line}"
        duplicate = FieldProblem(
            path=("metadata", "name"),
            value=shown(parsed.metadata.name),
            message=f"is the name of a {kind} that is already in {where}",
            next_step="rename or remove one of the two",
        )
        reading.errors.append(origin.error(duplicate))
        return
    reading.origins[kind, parsed.key] = origin
    if isinstance(parsed, ModelPool):
        reading.pools.append(parsed)
    else:
        reading.policies.append(parsed)


def _note_labels(namespace: dict[str, Any], reading: _Reading) -> None:
    metadata = namespace.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("labels"), dict):
        labels = {str(key): str(label) for key, label in metadata["labels"].items()}
        reading.namespace_labels[str(metadata.get("name"))] = labels


def _wrong_kind(value: Any) -> FieldProblem | None:
    """Why a document is no Kubernetes object or a wrong one of ours; None if it is neither."""
    if not isinstance(value, dict):
        return FieldProblem(
            path=(),
            value=shown(value),
            message="is not an object",
            allowed="a mapping with apiVersion, kind, metadata and spec",
        )
    for name, example in (("apiVersion", API_VERSION), ("kind", " or ".join(_KINDS))):
        if not isinstance(value.get(name), str):
            present = name in value
            return FieldProblem(
                path=(name,),
                value=shown(value[name]) if present else "",
                message="is not text" if present else "is missing",
                allowed=example,
                next_step="" if present else "add it",
            )
    kind, version = value["kind"], value["apiVersion"]
    if kind in _KINDS and version != API_VERSION:
        return FieldProblem(
            path=("apiVersion",),
            value=shown(version),
            message=f"is not the version of a {kind}",
            allowed=API_VERSION,
        )
    if kind not in _KINDS and version.split("/")[0] == GROUP:
        return FieldProblem(
            path=("kind",),
            value=shown(kind),
            message=f"is not a kind of {GROUP}",
            allowed=", ".join(_KINDS),
            next_step=did_you_mean(kind, list(_KINDS)),
        )
    return None


def _nulls(value: Any, path: FieldPath) -> Iterator[FieldPath]:
    """The fields without a value; a pod template and the metadata may have some."""
    if path in (_FREE_FORM, ("metadata",), ("status",)):
        return
    if value is None:
        yield path
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from _nulls(child, (*path, name))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _nulls(child, (*path, index))


def _item_text(value: Any) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return ""
    return f"{value['kind']} {_raw_key(value)}".strip()


def _raw_key(value: dict[str, Any]) -> str:
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return ""
    namespace = metadata.get("namespace", DEFAULT_NAMESPACE)
    return object_key(str(namespace), str(metadata.get("name", "")))
