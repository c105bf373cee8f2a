"""How a played RayService behaves: its delays, its moods and its failures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PodProblem(StrEnum):
    """Why worker pods do not get ready, in the words of their status."""

    IMAGE_PULL = "ImagePullBackOff"
    UNSCHEDULABLE = "Unschedulable"
    CRASH_LOOP = "CrashLoopBackOff"
    OUT_OF_MEMORY = "OOMKilled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Delays are in seconds, and each is drawn between half and one and a half of what it says."""

    react: float = 0.2
    """From a change of the RayService to what KubeRay does about it."""
    pod_start: float = 0.5
    """From a pod's creation until it is ready."""
    replica_start: float = 0.5
    """From a ready worker pod until its replica serves."""
    drain: float = 0.3
    """From the end asked of a replica or a pod until it is gone."""
    blank: float = 2.0
    """How long Ray lists no deployments after an application was deployed anew; drawn exactly."""
    worker_idle: float = 0.5
    """How long a worker pod without a replica stays."""
    flap_every: float = 0.0
    """A replica dies, and another takes its place, about as often; 0: never."""
    pod_problem: PodProblem | None = None
    """Of every worker pod that is not ready yet; without it they get ready."""
    deploy_error: str = ""
    """Ray's message with which the next deployments end as DEPLOY_FAILED; old replicas serve on."""
    dashboard_away: bool = False
    """The head's REST API drops every connection."""
