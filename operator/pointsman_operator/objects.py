"""What every object that the operator makes has in common: names, labels, owner, hash. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pointsman_api.labels import (
    FIELD_MANAGER,
    GATEWAY_LABEL,
    POOL_LABEL,
    POOL_NAMESPACE_LABEL,
    SPEC_HASH_ANNOTATION,
)
from pointsman_api.meta import API_VERSION
from pointsman_api.modelpool import ModelPool
from pointsman_kube.kinds import Object

Owner = Mapping[str, Any]
"""An entry of ``metadata.ownerReferences``."""


def pool_labels(pool: ModelPool, component: str) -> dict[str, str]:
    """The labels of an object that belongs to a pool.

    Args:
        component: what the object is for: ``replica``, ``head``, ``access``, …
    """
    return {
        **_common(instance=pool.metadata.name, component=component),
        POOL_LABEL: pool.metadata.name,
        POOL_NAMESPACE_LABEL: pool.metadata.namespace,
    }


def gateway_labels(gateway: str, component: str) -> dict[str, str]:
    """The labels of an object that is made for a gateway."""
    return {**_common(instance=gateway, component=component), GATEWAY_LABEL: gateway}


def pool_selector(pool: ModelPool) -> str:
    """The selector of a pool's replica pods, for ``kubectl scale`` and autoscalers."""
    return f"{POOL_LABEL}={pool.metadata.name},app.kubernetes.io/component=replica"


def _common(*, instance: str, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "pointsman",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "pointsman",
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
    }


def owner_reference(pool: ModelPool) -> dict[str, object]:
    """What makes Kubernetes delete an object of the pool's namespace with the pool.

    It does not block the pool's deletion: that would need a right on its finalizers.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelPool",
        "name": pool.metadata.name,
        "uid": pool.metadata.uid or "",
        "controller": True,
        "blockOwnerDeletion": False,
    }


def owned(obj: Object, owner: Owner | None) -> Object:
    """The object with its owner; as it is where there is none."""
    if owner is None:
        return obj
    return {**obj, "metadata": {**obj["metadata"], "ownerReferences": [dict(owner)]}}


def canonical(value: object) -> bytes:
    """Equal for equal JSON values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: object) -> str:
    """SHA-256 of a JSON value in hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def with_hash(obj: Object) -> Object:
    """The object with the annotation that :mod:`drift <pointsman_operator.drift>` compares."""
    metadata = dict(obj["metadata"])
    annotations = dict(metadata.get("annotations") or {})
    annotations.pop(SPEC_HASH_ANNOTATION, None)
    metadata["annotations"] = annotations
    bare = {**obj, "metadata": metadata}
    return {
        **bare,
        "metadata": {
            **metadata,
            "annotations": {**annotations, SPEC_HASH_ANNOTATION: digest(bare)[:16]},
        },
    }


def metadata_of(obj: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metadata of an object; empty where it has none."""
    metadata = obj.get("metadata")
    return metadata if isinstance(metadata, Mapping) else {}


def name_of(obj: Mapping[str, Any]) -> str:
    """The name of an object."""
    return str(metadata_of(obj).get("name") or "")


def annotation_of(obj: Mapping[str, Any], name: str) -> str:
    """One annotation of an object; empty where it has none."""
    return str((metadata_of(obj).get("annotations") or {}).get(name) or "")


def is_going(obj: Mapping[str, Any]) -> bool:
    """Whether the object is being deleted."""
    return bool(metadata_of(obj).get("deletionTimestamp"))
