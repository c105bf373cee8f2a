"""Whose an object is that has a name which a pool's own object needs. Pure.

Server-side apply with force would make any object of that name the pool's. What somebody else made
is left alone, and so is what belongs to a deleted pool of the same name: Kubernetes deletes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pointsman_api.conditions import ModelPoolCondition, Reason
from pointsman_api.labels import FIELD_MANAGER, POOL_LABEL
from pointsman_api.meta import GROUP
from pointsman_api.modelpool import ModelPool
from pointsman_operator.objects import metadata_of, name_of
from pointsman_operator.problem import Problem
from pointsman_operator.times import seconds_of

_MANAGED_BY = "app.kubernetes.io/managed-by"


class Claim(StrEnum):
    """Whose an object is."""

    OURS = "Ours"
    """The pool's; also one that lost its owner but still says that the operator made it for a pool
    of this name, as after ``kubectl delete --cascade=orphan``."""
    FORMER = "Former"
    """That of a deleted pool of the same name: Kubernetes is about to delete it."""
    STRANGER = "Stranger"
    """Somebody else's."""


def claim_of(document: Mapping[str, Any], pool: ModelPool) -> Claim:
    """Whose an object of the pool's namespace is that has a name of the pool's."""
    owners = metadata_of(document).get("ownerReferences") or ()
    if any(owner.get("uid") == (pool.metadata.uid or "") for owner in owners):
        return Claim.OURS
    if any(_is_namesake(owner, pool) for owner in owners):
        return Claim.FORMER
    if any(owner.get("controller") or _is_pool(owner) for owner in owners):
        return Claim.STRANGER
    return Claim.OURS if is_labelled(document, pool) else Claim.STRANGER


def is_labelled(document: Mapping[str, Any], pool: ModelPool) -> bool:
    """Whether the object says that the operator made it for a pool of this name."""
    labels = metadata_of(document).get("labels") or {}
    return labels.get(_MANAGED_BY) == FIELD_MANAGER and labels.get(POOL_LABEL) == pool.metadata.name


def is_former(document: Mapping[str, Any], pool: ModelPool) -> bool:
    """Whether a RayCluster or a pod was made before the pool was: by its deleted namesake.

    Neither names the pool as its owner; KubeRay makes them for the RayService.
    """
    made = seconds_of(metadata_of(document).get("creationTimestamp"))
    since = seconds_of(pool.metadata.creation_timestamp)
    return made is not None and since is not None and made < since


def obstacles(documents: Iterable[Mapping[str, Any]], pool: ModelPool) -> Iterable[Problem]:
    """What to tell about objects that have the pool's names and are not its own."""
    for document in documents:
        kind, name = str(document.get("kind") or "object"), name_of(document)
        what = f"the {kind} {name} of the namespace {pool.metadata.namespace}"
        if claim_of(document, pool) is Claim.FORMER:
            message = (
                f"{what} belongs to a deleted ModelPool of the same name: the pool starts by "
                f"itself when it is gone; if it stays, see its finalizers with `kubectl get "
                f"{kind.lower()} {name} -o yaml`"
            )
        else:
            message = (
                f"{what} was not made for this pool and has the name that the pool needs; it is "
                "left as it is: delete it or give it another name, or make the pool under another "
                "name; the pool goes on by itself"
            )
        yield Problem(
            condition=ModelPoolCondition.REPLICAS_READY, reason=Reason.NAME_TAKEN, message=message
        )


def _is_pool(owner: Mapping[str, Any]) -> bool:
    group = str(owner.get("apiVersion") or "").partition("/")[0]
    return owner.get("kind") == "ModelPool" and group == GROUP


def _is_namesake(owner: Mapping[str, Any], pool: ModelPool) -> bool:
    return _is_pool(owner) and owner.get("name") == pool.metadata.name
