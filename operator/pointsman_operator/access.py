"""A pool's Secret ``NAME-access``: the tokens of its Ray clusters and of its replicas. Pure.

Pods read it once, when they start. So its values never change by themselves; when they are lost and
cannot be put back, the pods have to be replaced too, for which a stamp goes into their templates.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsman_api.labels import AUTH_TOKEN_KEY, REPLICA_TOKEN_KEY, access_secret_name
from pointsman_api.meta import GROUP
from pointsman_api.modelpool import ModelPool
from pointsman_kube.kinds import Object
from pointsman_operator.objects import (
    annotation_of,
    is_going,
    metadata_of,
    name_of,
    owner_reference,
    pool_labels,
)
from pointsman_operator.observed import Document, PoolObserved
from pointsman_operator.ray_service import REDIS_PASSWORD_KEY
from pointsman_operator.settings import OperatorSettings

STAMP_ANNOTATION = f"{GROUP}/access-renewed-at"
"""On the Secret and on the pods of a pool whose tokens had to be made anew: when that was, in
seconds since the epoch. A pool that never lost them has none, nor have its pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessTokens:
    """Fresh random values, which become a pool's tokens if it has none yet."""

    auth_token: str
    """Of Ray's REST API; 32 characters or more."""
    replica_token: str
    """That replicas want to see on every request; 32 characters or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPlan:
    """What to write of the Secret, and what its pods are to carry."""

    create: tuple[Object, ...] = ()
    apply: tuple[Object, ...] = ()
    stamp: str = ""
    """That the pods are to carry now; empty: none. A new one counts when the Secret has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Secret:
    data: dict[str, str] = field(default_factory=dict)
    stamp: str = ""


def plan_access(
    pool: ModelPool, observed: PoolObserved, fresh: AccessTokens, settings: OperatorSettings
) -> AccessPlan:
    """The Secret to create, or to apply with what it lacks.

    A value that is missing is the one that was there before, as far as that is known. Where it is
    not, and pods run with it, the Secret gets a stamp.
    """
    live = observed.access_secret
    there = _Secret() if live is None else _read(live)
    known = _Secret() if observed.lost_access is None else _read(observed.lost_access)
    tokens = _encoded({AUTH_TOKEN_KEY: fresh.auth_token, REPLICA_TOKEN_KEY: fresh.replica_token})
    lacking = [name for name in tokens if not there.data.get(name)]
    wanted = {name: known.data.get(name) or tokens[name] for name in lacking}
    now = there.stamp if live else known.stamp or stamp_in(observed.ray_service)
    stamp = now
    if _pods_run(observed) and any(not known.data.get(name) for name in lacking):
        stamp = str(int(observed.now))
    password = {REDIS_PASSWORD_KEY: settings.redis_password} if settings.redis_password else {}
    wanted |= {n: v for n, v in _encoded(password).items() if there.data.get(n) != v}
    owners = [owner_reference(pool), *_cluster_owners(observed, settings)]
    secret = _secret(pool, owners, there.data | wanted, stamp)
    if live is None:
        return AccessPlan(create=(secret,), stamp=now)
    owning = {owner.get("uid") for owner in metadata_of(live).get("ownerReferences") or ()}
    if not wanted and all(owner["uid"] in owning for owner in owners):
        return AccessPlan(stamp=now)
    # Whole: what an apply leaves out of what an earlier one has set is removed.
    return AccessPlan(apply=(secret,), stamp=now)


def stamped(spec: Mapping[str, Any], stamp: str) -> Mapping[str, Any]:
    """A RayService's spec whose pods carry a stamp; as it is where there is none.

    KubeRay answers another stamp with a second RayCluster, whose pods read the Secret as it is now.
    """
    if not stamp:
        return spec
    result = copy.deepcopy(dict(spec))
    cluster = result["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        metadata = group["template"].setdefault("metadata", {})
        metadata["annotations"] = {**(metadata.get("annotations") or {}), STAMP_ANNOTATION: stamp}
    return result


def stamp_in(service: Mapping[str, Any] | None) -> str:
    """The stamp that a RayService's pods carry; empty where they have none."""
    spec = (service or {}).get("spec") or {}
    head = (spec.get("rayClusterConfig") or {}).get("headGroupSpec") or {}
    return annotation_of(head.get("template") or {}, STAMP_ANNOTATION)


def has_outdated_pods(observed: PoolObserved) -> bool:
    """Whether pods run that have tokens which the Secret has no more."""
    stamp = annotation_of(observed.access_secret or {}, STAMP_ANNOTATION)
    return bool(stamp) and any(
        annotation_of(pod, STAMP_ANNOTATION) != stamp for pod in observed.pods if not is_going(pod)
    )


def _pods_run(observed: PoolObserved) -> bool:
    return any(not is_going(item) for item in (*observed.ray_clusters, *observed.pods))


def _read(secret: Document) -> _Secret:
    return _Secret(
        data=dict(secret.get("data") or {}), stamp=annotation_of(secret, STAMP_ANNOTATION)
    )


def _cluster_owners(observed: PoolObserved, settings: OperatorSettings) -> list[dict[str, object]]:
    """The RayClusters that need the Secret longer than the pool does.

    When one is deleted KubeRay runs a Job that clears its keys in Redis, with the password from
    here: without it the Job cannot start, and KubeRay's finalizer holds the RayCluster.
    """
    if not settings.redis_password:
        return []
    return [
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "name": name_of(cluster),
            "uid": str(metadata_of(cluster).get("uid") or ""),
            "controller": False,
            "blockOwnerDeletion": False,
        }
        for cluster in sorted(observed.ray_clusters, key=name_of)
    ]


def _secret(
    pool: ModelPool, owners: list[dict[str, object]], data: Mapping[str, str], stamp: str
) -> Object:
    metadata: dict[str, Any] = {
        "name": access_secret_name(pool.metadata.name),
        "namespace": pool.metadata.namespace,
        "labels": pool_labels(pool, "access"),
        "ownerReferences": owners,
    }
    if stamp:
        metadata["annotations"] = {STAMP_ANNOTATION: stamp}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": metadata,
        "data": dict(data),
    }


def _encoded(values: Mapping[str, str]) -> dict[str, str]:
    return {name: base64.b64encode(text.encode()).decode() for name, text in values.items()}
