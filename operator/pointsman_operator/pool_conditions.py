"""The conditions of a pool, each from one view of what is. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pointsman_api.conditions import ModelPoolCondition as Condition
from pointsman_api.conditions import Reason
from pointsman_api.labels import access_secret_name
from pointsman_api.modelpool import EngineType, Rollout
from pointsman_operator.conditions import Said, condition_of
from pointsman_operator.objects import metadata_of, name_of
from pointsman_operator.pool_view import View
from pointsman_operator.problem import Problem
from pointsman_operator.reach import Reach
from pointsman_operator.rollout import MOVING, Phase
from pointsman_operator.times import seconds_of


def pool_conditions(view: View) -> Iterable[Said]:
    """The conditions in their order; those that do not apply to the backend are left out."""
    accepted = _accepted(view)
    yield accepted
    if view.pool.spec.backend.ray_serve is None:
        replicas = _foreign_replicas(view)
        yield replicas
        yield Said(
            type=Condition.ACTIVE,
            status=True,
            reason=Reason.ACTIVE,
            message="its replicas are run by somebody else",
        )
        yield _ready(view, (replicas, accepted))
        return
    model, replicas = _model_ready(view), _replicas_ready(view)
    yield model
    yield replicas
    yield _progressing(view)
    yield _active(view)
    yield _ready(view, (replicas, model, accepted))


def _problem(view: View, condition: Condition) -> Problem | None:
    return next((item for item in view.problems if item.condition is condition), None)


def _accepted(view: View) -> Said:
    problem = _problem(view, Condition.ACCEPTED)
    if problem is None:
        return _said(Condition.ACCEPTED, True, Reason.ACCEPTED, "the spec is valid")
    message = problem.message
    if view.ready or view.observed.ray_service is not None:
        message += "; what was accepted last stays in force"
    return _said(Condition.ACCEPTED, False, problem.reason, message)


def _model_ready(view: View) -> Said:
    kind = Condition.MODEL_READY
    backend = view.pool.spec.backend.ray_serve
    problem = _problem(view, kind)
    if problem is not None:
        return _said(kind, False, problem.reason, problem.message)
    if view.cause is not None and view.cause.reason in _MODEL_CAUSES:
        return _said(kind, False, view.cause.reason, view.cause.message)
    if backend is not None and backend.engine.type == EngineType.SIMULATED:
        return _said(kind, True, Reason.MODEL_READY, "the engine Simulated needs no weights")
    if view.ready:
        return _said(kind, True, Reason.MODEL_READY, "replicas have loaded the model")
    old = condition_of(view.before, kind)
    if old.get("status") == "True" and view.before.get("currentRevision") == view.revision:
        return _said(kind, True, Reason.MODEL_READY, "replicas have loaded the model")
    return _said(kind, None, Reason.MODEL_UNKNOWN, "no replica has loaded the model yet")


_MODEL_CAUSES = frozenset({Reason.MODEL_NOT_FOUND, Reason.SECRET_NOT_FOUND})


def _replicas_ready(view: View) -> Said:
    kind = Condition.REPLICAS_READY
    if view.wanted == 0:
        return _said(kind, True, Reason.SCALED_TO_ZERO, "no replica is wanted")
    counts = f"{view.ready} of {view.wanted} replicas are ready"
    if view.ready >= view.wanted:
        return _said(kind, True, Reason.REPLICAS_READY, counts)
    problem = _problem(view, kind)
    if problem is not None:
        return _said(kind, False, problem.reason, problem.message)
    if view.cause is not None:
        return _said(kind, False, view.cause.reason, f"{counts}: {view.cause.message}")
    old = condition_of(view.before, kind)
    if old.get("reason") in _LASTING and view.before.get("updateRevision") == view.revision:
        # KubeRay deletes a pod that has crashed at once, and the next is only starting.
        reason, why = Reason(old["reason"]), str(old.get("message")).partition(": ")[2]
        return _said(kind, False, reason, f"{counts}: {why}")
    return _said(kind, False, Reason.REPLICAS_NOT_READY, f"{counts}; {_next_step(view)}")


_LASTING = frozenset({Reason.OUT_OF_MEMORY, Reason.CRASH_LOOP})


def _next_step(view: View) -> str:
    if view.observed.ray_service is None:
        problem = _problem(view, Condition.ACCEPTED)
        if problem is not None and not view.revision:
            return f"nothing is started: {problem.message}"
        return "the RayService is being made"
    namespace, name = view.pool.metadata.namespace, view.pool.metadata.name
    return (
        f"nothing is known to be wrong; `kubectl get pods -n {namespace} "
        f"-l pointsman.dev/pool={name}` shows its pods"
    )


def _foreign_replicas(view: View) -> Said:
    kind = Condition.REPLICAS_READY
    problem = _problem(view, Condition.MODEL_READY)
    if problem is not None:
        return _said(kind, False, problem.reason, problem.message)
    external = view.pool.spec.backend.external
    if external is not None:
        count = len(external.endpoints)
        return _said(kind, True, Reason.REPLICAS_READY, f"{count} addresses are configured")
    there = len(view.observed.pods)
    if view.ready:
        return _said(
            kind, True, Reason.REPLICAS_READY, f"{view.ready} of {there} selected pods are ready"
        )
    if there:
        return _said(
            kind,
            False,
            Reason.REPLICAS_NOT_READY,
            f"none of the {there} selected pods is ready: see why with `kubectl describe pod` "
            f"in the namespace {view.pool.metadata.namespace}",
        )
    return _said(
        kind,
        False,
        Reason.NO_REPLICAS,
        f"no pod of the namespace {view.pool.metadata.namespace} has the labels of "
        "spec.backend.podSelector.selector: correct it, or start pods with these labels",
    )


def _progressing(view: View) -> Said:
    kind = Condition.PROGRESSING
    phase = view.rollout.phase
    if phase is Phase.AT_ZERO:
        return _said(kind, False, Reason.SCALED_TO_ZERO, "no replica is wanted")
    if phase is Phase.FAILED:
        said = "Ray Serve has given the roll-out up" if view.cause is None else view.cause.message
        return _said(kind, False, Reason.DEPLOYMENT_FAILED, f"{said}{_old_ones(view)}")
    if phase in MOVING:
        if not view.revision:
            why = view.problems[0].message if view.problems else "nothing was rendered yet"
            return _said(kind, False, Reason.PENDING, f"nothing is rolled out: {why}")
        if _overdue(view):
            limit = (view.pool.spec.rollout or Rollout()).progress_deadline
            why = "" if view.cause is None else f": {view.cause.message}"
            return _said(
                kind,
                False,
                Reason.PROGRESS_DEADLINE_EXCEEDED,
                f"the revision {view.revision} is not rolled out after {limit}"
                f"{why}{_old_ones(view)}",
            )
        updated = len(view.rollout.updated)
        return _said(
            kind,
            True,
            Reason.PROGRESSING if phase is Phase.STARTING else Reason.ROLLING_OUT,
            f"{_DOING[phase]}: {updated} of {view.wanted} replicas have the revision "
            f"{view.revision}{_renewed(view)}",
        )
    if _scaling(view):
        return _said(
            kind, True, Reason.SCALING, f"{view.ready} of {view.wanted} replicas are ready"
        )
    return _said(kind, False, Reason.ROLLED_OUT, f"the revision {view.revision} is rolled out")


_DOING = {
    Phase.APPLYING: "the revision is handed to KubeRay",
    Phase.STARTING: "the first replicas start",
    Phase.ROLLING: "replicas are replaced one after the other",
    Phase.SWITCHING: "a second RayCluster starts beside the one that serves",
}


def _renewed(view: View) -> str:
    if not view.renewed:
        return ""
    secret = access_secret_name(view.pool.metadata.name)
    return (
        f"; the Secret {secret} was lost and has new values, so pods that have the old ones are "
        "replaced"
    )


def _old_ones(view: View) -> str:
    served = view.before.get("currentRevision")
    if view.ready and served and served != view.revision:
        return f"; the replicas of {served} serve on"
    return ""


def _overdue(view: View) -> bool:
    """Whether the roll-out of this revision has had its time."""
    old = condition_of(view.before, Condition.PROGRESSING)
    if view.before.get("updateRevision") != view.revision:
        return False
    if old.get("reason") == Reason.PROGRESS_DEADLINE_EXCEEDED:
        return True
    if old.get("status") != "True" or old.get("reason") == Reason.SCALING:
        return False
    began = seconds_of(old.get("lastTransitionTime")) or view.observed.now
    for document in view.observed.revisions:
        if name_of(document) == view.revision:
            made = seconds_of(metadata_of(document).get("creationTimestamp"))
            began = max(began, made or began)
    limit = (view.pool.spec.rollout or Rollout()).progress_deadline.seconds
    return view.observed.now - began > limit


def _scaling(view: View) -> bool:
    if view.ready == view.wanted:
        return False
    readings = list(view.observed.serve.values())
    if any(reading.scaling for reading in readings):
        return True
    # From zero there is nothing that could say so yet.
    return not any(reading.status is not None for reading in readings)


def _active(view: View) -> Said:
    if view.wanted == 0:
        return _said(Condition.ACTIVE, False, Reason.SCALED_TO_ZERO, "no replica is wanted now")
    return _said(Condition.ACTIVE, True, Reason.ACTIVE, "replicas are wanted")


def _ready(view: View, aspects: Iterable[Said]) -> Said:
    """Whether a request would be served now, or the pool is at zero by design."""
    kind = Condition.READY
    accepted = _problem(view, Condition.ACCEPTED) is None
    foreign = view.pool.spec.backend.ray_serve is None
    if not foreign and view.wanted == 0 and accepted:
        return _said(kind, True, Reason.SCALED_TO_ZERO, "it is at zero replicas, as wanted")
    serves = view.pool.spec.backend.external is not None or view.ready > 0
    blocked = [item for item in aspects if item.status is not True]
    if serves and foreign and blocked:
        serves = False
    if not serves:
        first = blocked[0] if blocked else None
        return _said(
            kind,
            False,
            Reason.NO_REPLICAS if first is None else first.reason,
            "no replica serves" if first is None else first.message,
        )
    external = view.pool.spec.backend.external
    there = f"{view.ready} replicas are ready" if external is None else "its addresses are known"
    # Gateways count no replicas of somebody else's addresses.
    reached = view.reached
    if not reached.serves and (external is None or reached.reach in (Reach.NO_POD, Reach.SILENT)):
        return _said(kind, False, Reason.GATEWAYS_NOT_READY, f"{there}, and {reached.why}")
    if reached.reach is Reach.NO_ROUTE:
        return _said(kind, True, Reason.READY, f"{there}; {reached.why}")
    return _said(kind, True, Reason.READY, "requests are served")


def _said(kind: Condition, status: bool | None, reason: Reason, message: str) -> Said:
    return Said(type=kind, status=status, reason=reason, message=message)
