"""Every value does something, and nothing else is a value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from charts.tools.generate import CHART
from charts.tools.value_types import KUBERNETES_LIST, KUBERNETES_OBJECT, STRINGS, type_of
from tests.chart.chart import HelmError, helm, merged, nested, render
from tests.chart.value_sets import PRODUCTION

Path = tuple[str, ...]

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

# The CRDs are long and have values of their own.
BASE = merged(PRODUCTION, {"crds": {"enabled": False}})

# Where a value is seen only beside others.
BESIDE: dict[str, dict[str, Any]] = {
    "crds.keep": {"crds": {"enabled": True}},
    "gateway.replicas": {"gateway": {"autoscaling": {"enabled": False}}},
    "redis.externalAddress": {"redis": {"enabled": False}},
    "image.tag": {"image": {"digest": ""}},
    "operator.serviceAccount.create": {"operator": {"serviceAccount": {"name": "other"}}},
    "gateway.serviceAccount.create": {"gateway": {"serviceAccount": {"name": "other"}}},
}

# Other values than the default, where a type does not tell.
SAMPLES: dict[str, Any] = {
    "image.digest": "sha256:" + "1" * 64,
    "redis.image.digest": "sha256:" + "2" * 64,
    "imagePullSecrets": [{"name": "other"}],
    "operator.extraGateways": ["other"],
    "operator.ray.version": "2.61.0",
    "operator.rayHead.cpu": "3",
    "operator.rayHead.memory": "3Gi",
    "operator.rayHead.memoryLimit": "5Gi",
    "operator.rayHead.autoscalerCpu": "3",
    "operator.rayHead.autoscalerMemory": "3Gi",
    "gateway.service.loadBalancerSourceRanges": ["198.51.100.0/24"],
    "gateway.ingress.hosts": ["other.example.com"],
    "gateway.ingress.tls": [{"secretName": "other"}],
    "gateway.httpRoute.parentRefs": [{"name": "other"}],
    "gateway.httpRoute.hostnames": ["other.example.com"],
    "gateway.httpRoute.requestTimeout": "1h",
    "redis.externalAddress": "other.example.com:6379",
    "redis.persistence.size": "2Gi",
    "networkPolicy.apiServer.cidrs": ["198.51.100.0/24"],
    "networkPolicy.externalPools.cidrs": ["198.51.100.0/24"],
    "serviceMonitor.interval": "1m",
}


def value_paths(node: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    """The paths of all values; groups are none."""
    for name, child in node["properties"].items():
        here = (*path, name)
        if here == ("global",):
            continue
        if child.get("additionalProperties") is False:
            yield from value_paths(child, here)
        else:
            yield here


def schema_of(path: Path) -> dict[str, Any]:
    node = SCHEMA
    for name in path:
        node = node["properties"][name]
    return node


def now(path: Path) -> Any:
    """What the value is in the base of these tests."""
    tree: Any = merged(VALUES, BASE, BESIDE.get(".".join(path), {}))
    for name in path:
        tree = tree[name]
    return tree


def another(path: Path) -> Any:
    """An allowed value that differs from the present one."""
    name, present, schema = ".".join(path), now(path), schema_of(path)
    if name in SAMPLES:
        return SAMPLES[name]
    fragment = type_of(path)
    if fragment in (STRINGS, KUBERNETES_OBJECT):
        return {"sample": "other"}
    if fragment == KUBERNETES_LIST:
        return [{"name": "other"}]
    if isinstance(present, bool):
        return not present
    if "enum" in schema:
        return next(each for each in schema["enum"] if each != present)
    if isinstance(present, int):
        return present + 1
    if isinstance(present, str) and path[-1] == "maxUnavailable":
        return 3
    if isinstance(present, str):
        return "other"
    if isinstance(present, list):
        return [7]
    raise LookupError(f"say in SAMPLES what {name} could be")


@pytest.mark.parametrize("path", list(value_paths(SCHEMA)), ids=".".join)
def test_value_changes_what_is_installed_when_it_changes(path: Path) -> None:
    other = another(path)
    jsonschema.validate(other, schema_of(path))
    base = merged(BASE, BESIDE.get(".".join(path), {}))
    assert now(path) != other
    assert render(base) != render(merged(base, nested(path, other)))


def open_objects(node: Any, path: str = "") -> Iterator[str]:
    """Paths of a schema at which names are not closed."""
    if not isinstance(node, dict):
        return
    if node.get("type") == "object" and node.get("additionalProperties") is not False:
        yield path
    for name, child in node.get("properties", {}).items():
        yield from open_objects(child, f"{path}.{name}".lstrip("."))
    yield from open_objects(node.get("items"), f"{path}[]")


def test_schema_is_open_only_where_kubernetes_or_labels_say_the_names() -> None:
    def allowed(path: str) -> bool:
        fragment = type_of(tuple(path.removesuffix("[]").split(".")))
        return path == "global" or fragment in (STRINGS, KUBERNETES_OBJECT, KUBERNETES_LIST)

    found = list(open_objects(SCHEMA))
    assert [] == [path for path in found if not allowed(path)]
    assert "gateway.podSecurityContext" in found


def test_schema_has_a_description_for_every_value() -> None:
    undescribed = [path for path in value_paths(SCHEMA) if not schema_of(path).get("description")]
    assert [] == undescribed


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gatway": {}}, ["gatway"]),
        ({"gateway": {"replica": 3}}, ["/gateway", "replica"]),
        ({"operator": {"leaderElection": {"lease": 3}}}, ["/operator/leaderElection", "lease"]),
        ({"gateway": {"httpRoute": {"parentRefs": [{"nam": "x"}]}}}, ["parentRefs", "nam"]),
        ({"gateway": {"replicas": "2"}}, ["/gateway/replicas", "integer"]),
        ({"gateway": {"name": "Default"}}, ["/gateway/name", "pattern"]),
        ({"operator": {"logLevel": "loud"}}, ["/operator/logLevel", "info"]),
        ({"networkPolicy": {"apiServer": {"ports": [0]}}}, ["/networkPolicy/apiServer/ports/0"]),
        ({"image": {"digest": "sha256:12"}}, ["/image/digest"]),
        ({"commonLabels": {"a": 1}}, ["/commonLabels/a", "string"]),
    ],
    ids=lambda each: json.dumps(each) if isinstance(each, dict) else "",
)
def test_values_are_refused_by_name_when_they_are_unknown_or_wrong(
    values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(HelmError) as refused:
        render(values)
    message = str(refused.value).replace(".", "/")
    assert [] == [word for word in words if word not in message], message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"operator": {"leaderElection": {"renewSeconds": 15}}},
            "renewSeconds is 15 and must be below leaseSeconds, 15",
        ),
        (
            {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}}},
            "maxReplicas is 2 and must not be below minReplicas, 3",
        ),
        ({"gateway": {"httpRoute": {"enabled": True}}}, "name the Gateway to attach to"),
        (
            {"redis": {"enabled": True, "externalAddress": "redis:6379"}},
            "redis.enabled and redis.externalAddress exclude each other",
        ),
        (
            {"gateway": {"serviceAccount": {"create": False}}},
            "name the ServiceAccount to use in gateway.serviceAccount.name",
        ),
    ],
)
def test_values_are_refused_with_the_next_step_when_they_contradict_each_other(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(HelmError, match=message):
        render(values)


def test_chart_takes_a_parents_global_values_when_it_is_a_part_of_another_chart() -> None:
    assert render() == render({"global": {"storageClass": "fast"}})


def test_chart_speaks_of_its_own_version_when_it_names_images() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    images = VALUES["operator"]["engineImages"]
    tags = {images[engine].partition(":")[2] for engine in ("vllm", "transformers", "simulated")}
    assert {chart["appVersion"]} == tags


def test_chart_has_the_version_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    version = project["project"]["version"]
    assert (version, version) == (chart["version"], chart["appVersion"])


def test_chart_refuses_a_cluster_that_is_too_old() -> None:
    with pytest.raises(HelmError, match=r"1\.28.*incompatible|kubeVersion"):
        helm("template", "pointsman", CHART, "--kube-version=1.28.0")
