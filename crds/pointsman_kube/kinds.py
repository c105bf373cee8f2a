"""The kinds of objects that this system reads and writes, and where the API serves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

Object = dict[str, Any]
"""An object as the API sends it: JSON types only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of objects and its place in the API."""

    group: str
    """API group; empty for the core group."""
    version: str
    plural: str
    """The name in paths: ``modelpools``."""
    name: str
    """The name in manifests: ``ModelPool``."""
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """``group/version``, or the version alone in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """``plural.group``, as ``kubectl get`` takes it and as messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """The URL's path of one object, or of all objects (of a namespace) without a name."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(quote(part, safe="") for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """One object: its kind, its namespace (empty where the kind has none) and its name."""

    kind: Kind
    namespace: str = ""
    name: str

    def __str__(self) -> str:
        """``modelpools.pointsman.dev default/qwen``, for messages."""
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind.resource} {place}"


MODEL_POOL = Kind(group="pointsman.dev", version="v1alpha1", plural="modelpools", name="ModelPool")
ROUTE_POLICY = Kind(
    group="pointsman.dev", version="v1alpha1", plural="routepolicies", name="RoutePolicy"
)
RAY_SERVICE = Kind(group="ray.io", version="v1", plural="rayservices", name="RayService")
RAY_CLUSTER = Kind(group="ray.io", version="v1", plural="rayclusters", name="RayCluster")
POD = Kind(group="", version="v1", plural="pods", name="Pod")
SECRET = Kind(group="", version="v1", plural="secrets", name="Secret")
CONFIG_MAP = Kind(group="", version="v1", plural="configmaps", name="ConfigMap")
NAMESPACE = Kind(group="", version="v1", plural="namespaces", name="Namespace", namespaced=False)
EVENT = Kind(group="", version="v1", plural="events", name="Event")
ENDPOINT_SLICE = Kind(
    group="discovery.k8s.io", version="v1", plural="endpointslices", name="EndpointSlice"
)
CONTROLLER_REVISION = Kind(
    group="apps", version="v1", plural="controllerrevisions", name="ControllerRevision"
)
LEASE = Kind(group="coordination.k8s.io", version="v1", plural="leases", name="Lease")

_KNOWN = {
    (kind.api_version, kind.name): kind
    for kind in (
        MODEL_POOL,
        ROUTE_POLICY,
        RAY_SERVICE,
        RAY_CLUSTER,
        POD,
        SECRET,
        CONFIG_MAP,
        NAMESPACE,
        EVENT,
        ENDPOINT_SLICE,
        CONTROLLER_REVISION,
        LEASE,
    )
}


def kind_of(obj: Mapping[str, Any]) -> Kind:
    """The kind of an object, by its ``apiVersion`` and ``kind``.

    Raises:
        ValueError: it is none of ours; lists those that are.
    """
    key = (str(obj.get("apiVersion", "")), str(obj.get("kind", "")))
    try:
        return _KNOWN[key]
    except KeyError:
        known = ", ".join(sorted(f"{version} {name}" for version, name in _KNOWN))
        raise ValueError(f"apiVersion {key[0]!r}, kind {key[1]!r} is not one of {known}") from None


def ref_of(obj: Mapping[str, Any]) -> Ref:
    """The reference to an object that carries its ``apiVersion`` and ``kind``."""
    metadata = obj["metadata"]
    return Ref(
        kind=kind_of(obj), namespace=metadata.get("namespace", ""), name=str(metadata["name"])
    )
