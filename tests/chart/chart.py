"""The chart as tests see it: rendered by the real helm into objects, or refused with a message."""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from charts.tools.generate import CHART
from tests.cluster.binaries import binary

Object = dict[str, Any]
Values = Mapping[str, Any]

WORKLOADS = ("Deployment", "StatefulSet", "Pod")


class HelmError(RuntimeError):
    """helm refused; the message is what it said."""


def helm(*arguments: str | Path) -> str:
    """What helm prints.

    Raises:
        HelmError: it failed.
    """
    command = [str(binary("helm")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def render(
    values: Values | None = None, *, release: str = "pointsman", namespace: str = "pointsman-system"
) -> list[Object]:
    """Every object of a release, the test's pod included.

    Raises:
        HelmError: the values are refused.
    """
    text = _rendered(json.dumps(values or {}, sort_keys=True), release, namespace)
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]


@functools.cache
def _rendered(values: str, release: str, namespace: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(values)
        file.flush()
        return helm("template", release, CHART, f"--namespace={namespace}", f"--values={file.name}")


def one(objects: Iterable[Object], kind: str, component: str, *, ending: str = "") -> Object:
    """The only object of a kind and component (with a name that ends so)."""
    found = [
        each
        for each in objects
        if each["kind"] == kind
        and each["metadata"]["labels"].get("app.kubernetes.io/component") == component
        and each["metadata"]["name"].endswith(ending)
    ]
    if len(found) != 1:
        names = [each["metadata"]["name"] for each in found]
        raise LookupError(f"{len(found)} objects {kind} of {component}: {names}")
    return found[0]


def kinds(objects: Iterable[Object]) -> list[str]:
    """Kinds with components, as in ``Deployment/gateway``, sorted."""
    return sorted(
        f"{each['kind']}/{each['metadata']['labels']['app.kubernetes.io/component']}"
        for each in objects
    )


def pod_template(workload: Object) -> Object:
    """Metadata and spec of the pods of a workload, or of a pod."""
    if workload["kind"] == "Pod":
        return workload
    template: Object = workload["spec"]["template"]
    return template


def pods(objects: Iterable[Object]) -> list[Object]:
    """The pod templates of all workloads."""
    return [pod_template(each) for each in objects if each["kind"] in WORKLOADS]


def container(workload: Object) -> Object:
    """The only container of a workload."""
    (only,) = pod_template(workload)["spec"]["containers"]
    found: Object = only
    return found


def environment(workload: Object) -> dict[str, Any]:
    """Environment variables by name: the value, or where it comes from."""
    return {
        each["name"]: each.get("value", each.get("valueFrom"))
        for each in container(workload)["env"]
    }


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels have all that a selector asks for."""
    return selector.items() <= labels.items()


def leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of nested mappings that is no mapping, with its path."""
    if isinstance(tree, Mapping) and tree:
        for name, value in tree.items():
            yield from leaves(value, (*path, str(name)))
    else:
        yield path, tree


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """Values with one value at a path."""
    for name in reversed(path):
        value = {name: value}
    result: dict[str, Any] = value
    return result


def merged(*layers: Values) -> dict[str, Any]:
    """Values with later ones over earlier ones, as helm merges them."""
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            known = result.get(name)
            if isinstance(known, dict) and isinstance(value, Mapping):
                result[name] = merged(known, value)
            else:
                result[name] = value
    return result
