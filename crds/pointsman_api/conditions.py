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
