"""The condition types and reasons of both kinds: words that people and programs rely on."""

from __future__ import annotations

from enum import StrEnum


class ModelPoolCondition(StrEnum):
    """The aspects of a ModelPool's state."""

    ACCEPTED = "Accepted"
    """The spec is valid and nothing in it conflicts with another object."""
    MODEL_READY = "ModelReady"
    """The model's files are where the replicas look for them."""
    REPLICAS_READY = "ReplicasReady"
    """As many replicas serve as are wanted."""
    PROGRESSING = "Progressing"
    """A change is being rolled out, and it moves."""
    ACTIVE = "Active"
    """At least one replica is wanted."""
    READY = "Ready"
    """A request would be served now, or the pool is at zero by design."""


class RoutePolicyCondition(StrEnum):
    """The aspects of a RoutePolicy's state."""

    ACCEPTED = "Accepted"
    """The spec is valid and the policy owns its model names."""
    RESOLVED_REFS = "ResolvedRefs"
    """Every pool it names exists and allows it."""
    PROGRAMMED = "Programmed"
    """The gateways run this generation."""
    READY = "Ready"
    """A request for its model names would be served now."""


class Reason(StrEnum):
    """Why a condition has its status."""

    ACCEPTED = "Accepted"
    INVALID = "Invalid"
    MODEL_NAME_CONFLICT = "ModelNameConflict"
    """An older object of the same gateway has the model name."""
    RESOLVED_REFS = "ResolvedRefs"
    POOL_NOT_FOUND = "PoolNotFound"
    """A target names a ModelPool that does not exist."""
    REF_NOT_PERMITTED = "RefNotPermitted"
    """A target names a ModelPool whose allowedRoutes leave this namespace out."""
    PROGRAMMED = "Programmed"
    GATEWAY_NOT_FOUND = "GatewayNotFound"
    READY = "Ready"
    PENDING = "Pending"
    PROGRESSING = "Progressing"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    REPLICAS_NOT_READY = "ReplicasNotReady"
    MODEL_NOT_FOUND = "ModelNotFound"
    SCALED_TO_ZERO = "ScaledToZero"
    ACTIVE = "Active"
    MODEL_READY = "ModelReady"
    MODEL_UNKNOWN = "ModelUnknown"
    """No replica has said yet whether it finds the model."""
    REPLICAS_READY = "ReplicasReady"
    NO_REPLICAS = "NoReplicas"
    ROLLED_OUT = "RolledOut"
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    DEPLOYMENT_FAILED = "DeploymentFailed"
    """Ray Serve could not bring the replicas up; what served before serves on."""
    UNSCHEDULABLE = "Unschedulable"
    """No node has room or the hardware for a pod."""
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CRASH_LOOP = "CrashLoop"
    OUT_OF_MEMORY = "OutOfMemory"
    SECRET_NOT_FOUND = "SecretNotFound"
    """A Secret that the object names, or its key, does not exist."""
    HOST_PATH_NOT_ALLOWED = "HostPathNotAllowed"
    """The operator does not let pods use folders of the node."""
    KUBERAY_NOT_INSTALLED = "KubeRayNotInstalled"
    """The cluster does not know the kind RayService."""
    GATEWAYS_NOT_READY = "GatewaysNotReady"
    """Not every gateway runs this configuration yet."""
