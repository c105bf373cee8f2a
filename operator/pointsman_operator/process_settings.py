"""What can be set about the operator's process; nothing here is about pools."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pointsman_operator.lease import LeaseTimes
from pointsman_operator.settings import PREFIX


def _identity() -> str:
    # A restarted container keeps its pod's name, but is another candidate.
    pod = os.environ.get("POD_NAME") or socket.gethostname()
    return f"{pod}_{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """One operator process.

    Raises:
        ValueError: a value is out of its range; says which and what is allowed.
    """

    listen_host: str = ""
    """Address of /healthz, /readyz and /metrics; probes and scrapes come from outside. Empty: every
    address, of IPv4 and IPv6."""
    listen_port: int = 8081
    """TCP port of the same; 0 lets the system choose one."""
    identity: str = field(default_factory=_identity)
    """Name in the Lease; unique to this life of the process."""
    lease_name: str = "pointsman-operator"
    """Name of the Lease in the operator's namespace."""
    lease_seconds: float = 15.0
    """The other operator takes over when the leader has been silent for this long."""
    renew_deadline_seconds: float = 10.0
    """A leader that could not renew its Lease for this long ends; below lease_seconds."""
    retry_seconds: float = 2.0
    """Between two renewals of the Lease."""
    workers: int = 16
    """Pools that are reconciled at once."""
    ray_workers: int = 16
    """Ray heads that are asked at once."""
    resync_seconds: float = 600.0
    """Each object is looked at again after this even if nothing has changed."""
    sweep_seconds: float = 60.0
    """Between two comparisons of what we hold with what the API server has."""
    stuck_seconds: float = 120.0
    """A deleted RayCluster on whose end nobody works for this long loses KubeRay's finalizer."""
    frozen_seconds: float = 180.0
    """/healthz fails when a watch has been silent for this long; servers speak once a minute."""
    log_level: str = "info"
    """debug, info, warning or error."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 0 <= self.listen_port <= 65535:
            raise ValueError(f"listen_port is {self.listen_port}; it must be between 0 and 65535")
        for name in (
            "workers",
            "ray_workers",
            "resync_seconds",
            "sweep_seconds",
            "stuck_seconds",
            "frozen_seconds",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.log_level not in LOG_LEVELS:
            raise ValueError(
                f"log_level is {self.log_level!r}; it must be one of {', '.join(LOG_LEVELS)}"
            )
        _ = self.lease_times

    @property
    def lease_times(self) -> LeaseTimes:
        """How the election is timed."""
        return LeaseTimes(
            lease_seconds=self.lease_seconds,
            renew_deadline_seconds=self.renew_deadline_seconds,
            retry_seconds=self.retry_seconds,
        )


LOG_LEVELS = ("debug", "info", "warning", "error")


def process_settings_from(environment: Mapping[str, str]) -> ProcessSettings:
    """Read the settings from the same ``POINTSMAN_OPERATOR_…`` variables as those of pools.

    Raises:
        ValueError: a value has the wrong form; names the variable, the value and what is allowed.
    """
    values: dict[str, Any] = {}
    for item in fields(ProcessSettings):
        variable = PREFIX + item.name.upper()
        if variable not in environment:
            continue
        text = environment[variable]
        convert, allowed = {
            "int": (int, "a whole number"),
            "float": (float, "a number"),
            "str": (str, "text"),
        }[str(item.type)]
        try:
            values[item.name] = convert(text)
        except ValueError:
            raise ValueError(f"{variable} is {text!r}: it must be {allowed}") from None
    return ProcessSettings(**values)
