"""What clients asked of an API server, as its own audit log tells it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # Of a watch its start is told, of other calls their end.
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCall:
    """One call, by what RBAC would ask about it."""

    at: datetime
    user: str
    user_agent: str
    verb: str
    group: str
    resource: str
    """With the subresource, such as ``modelpools/status``; a path for what is no resource."""
    namespace: str
    name: str
    code: int

    @property
    def writes(self) -> bool:
        """Whether the call may change something."""
        return self.verb in WRITES


def read_calls(log: Path) -> list[ApiCall]:
    """The calls of an audit log, oldest first; a line that is being written is left out."""
    if not log.exists():
        return []
    calls = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["verb"] == "watch" and event["stage"] != "ResponseStarted":
            continue
        calls.append(_call(event))
    return sorted(calls, key=lambda call: call.at)


def _call(event: dict[str, Any]) -> ApiCall:
    target = event.get("objectRef") or {}
    resource = target.get("resource", event["requestURI"])
    if subresource := target.get("subresource"):
        resource = f"{resource}/{subresource}"
    return ApiCall(
        at=datetime.fromisoformat(event["requestReceivedTimestamp"]),
        user=event["user"].get("username", ""),
        user_agent=event.get("userAgent", ""),
        verb=event["verb"],
        group=target.get("apiGroup", ""),
        resource=resource,
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=(event.get("responseStatus") or {}).get("code", 0),
    )
