"""What to write for one pool: a pure function of what is wanted and what is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pointsman_api.conditions import ModelPoolCondition, Reason
from pointsman_api.labels import REVISION_ANNOTATION
from pointsman_api.modelpool import ModelPool
from pointsman_kube.kinds import (
    CONTROLLER_REVISION,
    ENDPOINT_SLICE,
    RAY_SERVICE,
    Object,
    Ref,
)
from pointsman_operator.access import AccessPlan, AccessTokens, plan_access, stamp_in, stamped
from pointsman_operator.claims import is_labelled, obstacles
from pointsman_operator.drift import needs_apply
from pointsman_operator.objects import (
    annotation_of,
    is_going,
    metadata_of,
    name_of,
)
from pointsman_operator.observed import PoolObserved
from pointsman_operator.problem import Problem, RefusedSpecError
from pointsman_operator.ray_service import ray_service, render_spec
from pointsman_operator.revision import (
    Revision,
    decode_revision,
    encode_revision,
    find_revision,
    latest_number,
    revision_key,
    revision_name,
    surplus_revisions,
)
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.sources import check_host_paths, named_secrets

__all__ = ["AccessTokens", "PoolPlan", "plan_gone", "plan_pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What to write, in this order. Nothing in it: what is, is what is wanted."""

    create: tuple[Object, ...] = ()
    """Make these; one that exists already stays as it is."""
    apply: tuple[Object, ...] = ()
    """Apply these one after the other."""
    delete: tuple[Ref, ...] = ()
    """Then delete these; one that is gone already is no error."""
    revision: str = ""
    """Name of the revision that the pool's spec asks for; empty where it cannot be rendered."""
    wanted_replicas: int = 0
    problems: tuple[Problem, ...] = ()
    """What keeps the pool from what it wants."""
    held_back: bool = False
    """The API server refuses what the spec asks for: this is for what was accepted last."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be written."""
        return not (self.create or self.apply or self.delete)


def plan_pool(
    pool: ModelPool,
    observed: PoolObserved,
    settings: OperatorSettings,
    *,
    wanted_replicas: int,
    fresh: AccessTokens,
) -> PoolPlan:
    """What to write in the pool's own namespace.

    A spec that cannot be rendered writes nothing, so the last good RayService serves on. A Secret
    that is missing is a problem and nothing else: pods that need it wait, and start when it comes.

    Args:
        pool: the pool; one of another type than RayServe needs no objects here.
        wanted_replicas: from the spec, or from the scaling decision; 0: no RayService.
        fresh: see :class:`AccessTokens`.
    """
    problems = list(_missing_secrets(pool, observed))
    if pool.spec.backend.ray_serve is None:
        return PoolPlan(problems=tuple(problems))
    own = tuple(item for item in observed.revisions if _is_owned(item, pool))
    revision, refused = _wanted_revision(pool, own, observed, settings)
    if refused is not None:
        problems.insert(0, refused)
    if not observed.kuberay_served:
        problems.append(_KUBERAY_MISSING)
    held_back = bool(observed.refused_revision) and (
        observed.refused_revision == revision_name(pool, revision_key(pool))
    )
    namesake = None if revision is None else _namesake(observed.revisions, own, revision.name)
    strange = namesake is not None and not is_labelled(namesake, pool)
    in_the_way = (*observed.in_the_way, *((namesake,) if namesake and strange else ()))
    problems += obstacles(in_the_way, pool)
    # A pool that runs goes on: its pods have what they need of what is in the way.
    blocked = bool(in_the_way) and (observed.ray_service is None or strange)
    if revision is None or not observed.kuberay_served or blocked:
        return PoolPlan(
            wanted_replicas=wanted_replicas, problems=tuple(problems), held_back=held_back
        )
    access = AccessPlan(stamp=stamp_in(observed.ray_service))
    if not in_the_way:
        access = plan_access(pool, observed, fresh, settings)
    apply = list(access.apply)
    stored = {name_of(item): item for item in own}
    document = encode_revision(pool, revision)
    delete: list[Ref] = []
    damaged = stored.get(revision.name) if _is_damaged(stored.get(revision.name)) else namesake
    if damaged is not None:
        # The data of a ControllerRevision cannot be changed: it is made anew in the next round.
        if not is_going(damaged):
            delete.append(_ref(CONTROLLER_REVISION, damaged))
    elif needs_apply(stored.get(revision.name), document):
        apply.append(document)
    service = observed.ray_service
    if wanted_replicas > 0:
        spec = stamped(revision.spec, access.stamp)
        wanted = ray_service(pool, replace(revision, spec=spec), wanted_replicas)
        # One that is going cannot be kept: the next is made when it is gone.
        if (service is None or not is_going(service)) and needs_apply(service, wanted):
            apply.append(wanted)
    elif service is not None and not is_going(service):
        delete.append(_ref(RAY_SERVICE, service))
    keep = frozenset({revision.name, _applied_revision(observed), _current_revision(pool)})
    delete += [
        _ref(CONTROLLER_REVISION, stored[name]) for name in surplus_revisions(own, keep=keep)
    ]
    return PoolPlan(
        create=access.create,
        apply=tuple(apply),
        delete=tuple(delete),
        revision=revision.name,
        wanted_replicas=wanted_replicas,
        problems=tuple(problems),
        held_back=held_back,
    )


def plan_gone(slices: Iterable[Mapping[str, Any]]) -> PoolPlan:
    """What to write when the pool was deleted: sweep what lies outside its namespace.

    What it owns is deleted by Kubernetes; its pods finish their requests first.

    Args:
        slices: the EndpointSlices that carry the pool's labels.
    """
    return PoolPlan(
        delete=tuple(_ref(ENDPOINT_SLICE, item) for item in slices if not is_going(item))
    )


_KUBERAY_MISSING = Problem(
    condition=ModelPoolCondition.REPLICAS_READY,
    reason=Reason.KUBERAY_NOT_INSTALLED,
    message=(
        "the cluster does not know the kind RayService (ray.io/v1): install KubeRay 1.6 or newer; "
        "the replicas start by themselves when it is there"
    ),
)


def _missing_secrets(pool: ModelPool, observed: PoolObserved) -> Iterable[Problem]:
    namespace = pool.metadata.namespace
    for name, key in sorted(named_secrets(pool).items()):
        if name not in observed.secrets:
            continue
        keys = observed.secrets[name]
        if keys is None:
            what = f"there is no Secret {name} in the namespace {namespace}"
            step = f"make it with the key {key}" if key else "make it"
        elif key and key not in keys:
            there = ", ".join(sorted(keys)) or "none"
            what = (
                f"the Secret {name} of the namespace {namespace} has no key {key} (it has {there})"
            )
            step = f"add the key {key}"
        else:
            continue
        yield Problem(
            condition=ModelPoolCondition.MODEL_READY,
            reason=Reason.SECRET_NOT_FOUND,
            message=f"{what}: {step}; the pool goes on by itself",
        )


def _wanted_revision(
    pool: ModelPool,
    own: tuple[Mapping[str, Any], ...],
    observed: PoolObserved,
    settings: OperatorSettings,
) -> tuple[Revision | None, Problem | None]:
    """The revision that the spec asks for, else the one that was applied last, and why."""
    key = revision_key(pool)
    applied = _applied_revision(observed)
    try:
        check_host_paths(pool, allow_host_path=settings.allow_host_path)
        revision = find_revision(own, key) or Revision(
            name=revision_name(pool, key),
            key=key,
            number=latest_number(own) + 1,
            spec=render_spec(pool, settings),
        )
    except RefusedSpecError as refused:
        last_good = _last_good(own, applied)
        if last_good is not None and last_good.key == key:
            # It is this very spec that is allowed no more: nothing is added to what runs.
            last_good = None
        return last_good, refused.problem
    if revision.name == observed.refused_revision:
        return (None if revision.name == applied else _last_good(own, applied)), None
    latest = latest_number(own)
    if revision.number < latest and revision.name != applied:
        # One that is wanted again becomes the newest, once.
        revision = replace(revision, number=latest + 1)
    return revision, None


def _last_good(own: tuple[Mapping[str, Any], ...], applied: str) -> Revision | None:
    return next((item for item in map(decode_revision, own) if item and item.name == applied), None)


def _applied_revision(observed: PoolObserved) -> str:
    service = observed.ray_service
    return "" if service is None else annotation_of(service, REVISION_ANNOTATION)


def _current_revision(pool: ModelPool) -> str:
    return (pool.status.current_revision if pool.status is not None else None) or ""


def _is_owned(document: Mapping[str, Any], pool: ModelPool) -> bool:
    """Whether the pool itself owns the object, not a former one of the same name or a stranger."""
    metadata = metadata_of(document)
    owners = metadata.get("ownerReferences") or ()
    return metadata.get("namespace") == pool.metadata.namespace and any(
        owner.get("uid") == (pool.metadata.uid or "") for owner in owners
    )


def _namesake(
    documents: Iterable[Mapping[str, Any]], own: Iterable[Mapping[str, Any]], name: str
) -> Mapping[str, Any] | None:
    """The ControllerRevision of this name that is not the pool's own."""
    if any(name_of(item) == name for item in own):
        return None
    return next((item for item in documents if name_of(item) == name), None)


def _is_damaged(document: Mapping[str, Any] | None) -> bool:
    return document is not None and decode_revision(document) is None


def _ref(kind: Any, document: Mapping[str, Any]) -> Ref:
    metadata = metadata_of(document)
    return Ref(kind=kind, namespace=str(metadata.get("namespace") or ""), name=name_of(document))
