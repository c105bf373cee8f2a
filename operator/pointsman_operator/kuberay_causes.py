"""Why KubeRay cannot make what a pool needs, by what it writes into its own objects. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pointsman_api.conditions import Reason
from pointsman_operator.objects import is_going, metadata_of, name_of

WORKER_STEP = "lower what the container engine asks for in spec.backend.rayServe.template"
HEAD_STEP = (
    "lower what the operator gives Ray's heads (operator.rayHead in the chart's values: cpu, "
    "memory, nodeSelector, tolerations)"
)

_LONGEST = 600
_FAILED_HEAD = "FailedCreateHeadPod"
_FAILED_WORKER = "FailedCreateWorkerPod"
_POD_NAME = re.compile(r'pods "[^"]*" is forbidden: ')
"""Another one with each try: a condition that names it would change all the time."""
_SERVICE_REASONS = frozenset({"ValidationFailed", "InitializingTimeout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a pod or an application does not serve."""

    reason: Reason
    message: str
    """What is wrong and what to do next, as one sentence."""


def kuberay_causes(
    clusters: Iterable[Mapping[str, Any]], service: Mapping[str, Any] | None
) -> Iterator[Cause]:
    """What KubeRay says against its RayClusters and their RayService.

    Args:
        clusters: those that are going are passed over.
    """
    for cluster in clusters:
        if not is_going(cluster):
            yield from _pods_refused(cluster)
    if service is not None:
        yield from _service_refused(service)


def _pods_refused(cluster: Mapping[str, Any]) -> Iterator[Cause]:
    for condition in _conditions(cluster):
        reason = condition.get("reason")
        if condition.get("type") != "ReplicaFailure" or condition.get("status") != "True":
            continue
        if reason not in (_FAILED_HEAD, _FAILED_WORKER):
            # That a pod cannot be deleted keeps no other from serving.
            continue
        head = reason == _FAILED_HEAD
        # KubeRay joins its own word and what the API server said with a line break.
        text = str(condition.get("message") or "").removeprefix(str(reason))
        said = shortened(_POD_NAME.sub("", text)) or "it gives no reason"
        yield Cause(
            reason=Reason.PODS_NOT_CREATED,
            message=(
                f"the API server refuses {'the head pod' if head else 'a worker pod'} of the "
                f"RayCluster {name_of(cluster)}: {said}; {_next_step(said, cluster, head=head)}"
            ),
        )


def _next_step(said: str, cluster: Mapping[str, Any], *, head: bool) -> str:
    namespace = metadata_of(cluster).get("namespace")
    lower = HEAD_STEP if head else WORKER_STEP
    if "quota" in said:
        return f"raise the ResourceQuota of the namespace {namespace}, or {lower}"
    if re.search(r"(maximum|minimum|max|min)\b.* (per|usage|limit)", said):
        return f"change the LimitRange of the namespace {namespace}, or {lower}"
    if "PodSecurity" in said:
        return (
            "let the pod do without what is named there, or change the label "
            f"pod-security.kubernetes.io/enforce of the namespace {namespace}"
        )
    if "webhook" in said or "ValidatingAdmissionPolicy" in said:
        return "ask those who run this admission check what they want, and change the pod to fit"
    return f"mend that, or see `kubectl describe raycluster {name_of(cluster)} -n {namespace}`"


def _service_refused(service: Mapping[str, Any]) -> Iterator[Cause]:
    for condition in _conditions(service):
        if condition.get("type") != "Ready" or condition.get("reason") not in _SERVICE_REASONS:
            continue
        said = shortened(str(condition.get("message") or "")) or str(condition["reason"])
        name, namespace = name_of(service), metadata_of(service).get("namespace")
        step = (
            "correct what it names in spec.backend.rayServe"
            if condition["reason"] == "ValidationFailed"
            else f"delete the RayService for a new try: `kubectl delete rayservice {name} "
            f"-n {namespace}`"
        )
        yield Cause(
            reason=Reason.DEPLOYMENT_FAILED,
            message=f"KubeRay does not start the RayService {name}: {said}; {step}",
        )


def _conditions(obj: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    found: Iterable[Mapping[str, Any]] = (obj.get("status") or {}).get("conditions") or ()
    return found


def shortened(text: str) -> str:
    """On one line, no longer than a condition bears, and without an end of its own."""
    flat = " ".join(text.split()).rstrip(".;")
    return flat if len(flat) <= _LONGEST else f"{flat[:_LONGEST]}…"
