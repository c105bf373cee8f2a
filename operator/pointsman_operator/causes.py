"""Why replicas do not come up: one sentence out of what pods and Ray say. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pointsman_api.conditions import Reason
from pointsman_operator.clusters import NODE_TYPE_LABEL
from pointsman_operator.kuberay_causes import (
    HEAD_STEP,
    WORKER_STEP,
    Cause,
    kuberay_causes,
    shortened,
)
from pointsman_operator.objects import is_going, metadata_of, name_of
from pointsman_operator.observed import ServeReading
from pointsman_serving.engines.serve_listing import PoolState

__all__ = ["Cause", "find_cause", "last_exception", "last_line", "pod_causes", "serve_cause"]

_MOST_TELLING = (
    Reason.SECRET_NOT_FOUND,
    Reason.IMAGE_PULL_FAILED,
    Reason.OUT_OF_MEMORY,
    Reason.CRASH_LOOP,
    Reason.MODEL_NOT_FOUND,
    Reason.DEPLOYMENT_FAILED,
    Reason.UNSCHEDULABLE,
    Reason.PODS_NOT_CREATED,
    Reason.REPLICAS_NOT_READY,
)
"""Of several causes the first in this order is told: the ones below often follow from it."""

_PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError"})

_EXCEPTION = re.compile(r"^\s*(?:\[[^\]]*\]\s*)?([A-Za-z_][\w.]*(?:Error|Exception|Exit)\b.*)$")
_MODEL_MISSING = re.compile(
    r"RepositoryNotFound|GatedRepo|RevisionNotFound|LocalEntryNotFound|NoSuchBucket|NoSuchKey|"
    r"AccessDenied|InvalidAccessKeyId|401 Client Error|403 Client Error|404 Client Error|"
    r"not a valid model identifier|not the path to a directory|"
    r"(?:no|have) a file named config\.json|no config\.json|Invalid repository ID"
)


def find_cause(
    pods: Iterable[Mapping[str, Any]],
    readings: Iterable[ServeReading],
    *,
    clusters: Iterable[Mapping[str, Any]] = (),
    service: Mapping[str, Any] | None = None,
    last_log_lines: Mapping[str, str] | None = None,
) -> Cause | None:
    """The most telling of all causes; None where nothing is known to be wrong.

    Args:
        pods: those that should serve or help to; pods that are going are passed over.
        readings: of the RayClusters that these pods are in.
        clusters: these RayClusters.
        service: their RayService.
        last_log_lines: by pod, where the shell has them.
    """
    lines = last_log_lines or {}
    found = [cause for pod in pods for cause in pod_causes(pod, lines.get(name_of(pod), ""))]
    found += [cause for reading in readings if (cause := serve_cause(reading)) is not None]
    found += kuberay_causes(clusters, service)
    return min(found, key=_rank, default=None)


def _rank(cause: Cause) -> tuple[int, str]:
    return (_MOST_TELLING.index(cause.reason), cause.message)


def pod_causes(pod: Mapping[str, Any], last_log_line: str = "") -> Iterator[Cause]:
    """What keeps one pod from running."""
    if is_going(pod):
        return
    status = pod.get("status") or {}
    name, head = name_of(pod), _is_head(pod)
    yield from _scheduling(name, status, head=head)
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            yield from _container(name, container, last_log_line, head=head)


def _scheduling(pod: str, status: Mapping[str, Any], *, head: bool) -> Iterator[Cause]:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            said = shortened(condition.get("message") or "the scheduler gives no reason")
            yield Cause(
                reason=Reason.UNSCHEDULABLE,
                message=(
                    f"no node takes the pod {pod}: {said}; add a node that fits, or "
                    f"{HEAD_STEP if head else WORKER_STEP}"
                ),
            )


def _is_head(pod: Mapping[str, Any]) -> bool:
    return (metadata_of(pod).get("labels") or {}).get(NODE_TYPE_LABEL) == "head"


def _container(
    pod: str, container: Mapping[str, Any], last_log_line: str, *, head: bool
) -> Iterator[Cause]:
    name = container.get("name", "")
    where = f"the container {name} of the pod {pod}"
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, said = waiting.get("reason") or "", shortened(waiting.get("message") or "")
    if reason in _PULL_REASONS:
        yield Cause(
            reason=Reason.IMAGE_PULL_FAILED,
            message=(
                f"the image {container.get('image', '')} of {where} cannot be pulled"
                f"{_told(said)}; correct spec.backend.rayServe.engine.image"
                f"{' or operator.rayHead.image' if head else ''}, or give the pods "
                "imagePullSecrets in the template"
            ),
        )
        return
    if reason in _CONFIG_REASONS:
        yield Cause(
            reason=Reason.SECRET_NOT_FOUND,
            message=f"{where} cannot be made{_told(said)}; make what it names",
        )
        return
    ended = _ended(container)
    if ended is None:
        return
    if ended.get("reason") == "OOMKilled":
        step = (
            "raise operator.rayHead.memoryLimit in the chart's values, which counts from the "
            "pool's next roll-out on"
            if head
            else "raise resources.limits.memory of the container engine, or let the engine take "
            "less (a shorter contextTokens, fewer maxSequences)"
        )
        yield Cause(
            reason=Reason.OUT_OF_MEMORY,
            message=f"{where} was killed because it took more memory than its limit; {step}",
        )
    elif reason == "CrashLoopBackOff" or ended.get("exitCode", 0) != 0:
        line = last_line(str(ended.get("message") or "")) or last_log_line
        yield Cause(
            reason=Reason.CRASH_LOOP,
            message=(
                f"{where} ended with exit code {ended.get('exitCode', '?')}"
                f"{_told(shortened(line))}; see `kubectl logs {pod} -c {name} --previous`"
            ),
        )


def _ended(container: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the container ended, if it is not running now."""
    state = container.get("state") or {}
    if "running" in state:
        return None
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    return ended if isinstance(ended, Mapping) else None


def serve_cause(reading: ServeReading) -> Cause | None:
    """What Ray Serve says about an application that does not come up."""
    status = reading.status
    if status is None or status.state not in (PoolState.FAILED, PoolState.UNHEALTHY):
        return None
    line = shortened(last_exception(status.message))
    if not line:
        return None
    if _MODEL_MISSING.search(status.message):
        return Cause(
            reason=Reason.MODEL_NOT_FOUND,
            message=(
                f"the replicas do not get the model: {line}; check spec.backend.rayServe.model "
                "and the Secret that it names"
            ),
        )
    if status.state is PoolState.UNHEALTHY:
        return Cause(
            reason=Reason.REPLICAS_NOT_READY,
            message=(
                f"Ray Serve replaces a replica that failed: {line}; if this does not end, see "
                "`kubectl logs` of the pool's pods"
            ),
        )
    return Cause(
        reason=Reason.DEPLOYMENT_FAILED,
        message=(
            f"Ray Serve could not bring the replicas up: {line}; correct the pool's spec, or ask "
            "for a new try with `kubectl annotate --overwrite mp NAME "
            'pointsman.dev/restarted-at="$(date -u +%FT%TZ)"`'
        ),
    )


def last_exception(text: str) -> str:
    """The last line of a traceback that names an exception, else the last line with any text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        match = _EXCEPTION.match(line)
        if match is not None:
            return match[1].strip()
    return lines[-1] if lines else ""


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _told(said: str) -> str:
    return f": {said}" if said else ""
