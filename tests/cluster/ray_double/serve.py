"""Ray Serve of one played RayCluster: a machine of states over given times, without I/O."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.ray_double.behaviour import Behaviour

_STARTING, _RUNNING, _STOPPING = "STARTING", "RUNNING", "STOPPING"
_KEPT_DEAD = 5
_PORT = 30000


@dataclass(slots=True, kw_only=True)
class Replica:
    """One life of a replica."""

    id: str
    deployed: float
    """When the configuration that it runs was told."""
    started: float
    state: str = _STARTING
    pod: str = ""
    """Its worker pod, the first of several; empty until one is free."""
    more: list[str] = field(default_factory=list)
    """Its further pods, where it spreads over several."""
    due: float | None = None
    """When its state changes by itself."""

    @property
    def pods(self) -> list[str]:
        """All worker pods that it has so far."""
        return [self.pod, *self.more] if self.pod else []


@dataclass(slots=True, kw_only=True)
class Serve:
    """The application of one RayCluster; ``advance`` moves it on.

    Args:
        node_of: pod -> (address, ready), or None where there is no such pod.
    """

    source: random.Random
    behaviour: Behaviour
    node_of: Callable[[str], tuple[str, bool] | None]
    application: Mapping[str, Any] | None = None
    deployed: float = 0.0
    """When the arguments last changed: replicas from before are old."""
    told: float = 0.0
    """When the application was last deployed."""
    error: str = ""
    replicas: list[Replica] = field(default_factory=list)
    dead: list[Replica] = field(default_factory=list)
    flap_due: float = 0.0
    lost: bool = False
    """A replica died, and not all wanted ones serve again."""

    def deploy(self, application: Mapping[str, Any], now: float) -> None:
        """Take a configuration, as ``PUT /api/serve/applications/`` does."""
        before = self.application
        self.application, self.told = application, now
        if before is None or _code(before) != _code(application):
            self.deployed = now
        self.error = self.behaviour.deploy_error

    @property
    def wanted(self) -> int:
        """How many replicas the configuration asks for."""
        return int(self._deployment.get("num_replicas", 1)) if self.application else 0

    @property
    def is_serving(self) -> bool:
        """Whether all wanted replicas run, all of the newest configuration."""
        running = [each for each in self._current if each.state == _RUNNING]
        return self.application is not None and not self.error and len(running) >= self.wanted > 0

    @property
    def hosts(self) -> int:
        """How many worker pods each replica takes."""
        return len(self._deployment.get("placement_group_bundles") or (1,))

    def advance(self, now: float) -> float | None:
        """Do what is due; returns when something is due next, None when only others move it."""
        self._lose_replicas_of_lost_pods(now)
        self._end_what_is_over(now)
        self._flap(now)
        if self.application is not None and not self.error:
            self._move_to_wanted(now)
        self._start(now)
        self.lost = self.lost and not self.is_serving
        times = [each.due for each in self.replicas if each.due is not None]
        if self.behaviour.flap_every and self.replicas:
            times.append(self.flap_due)
        blank_until = self.told + self.behaviour.blank
        if self.application is not None and now < blank_until:
            times.append(blank_until)
        return min(times, default=None)

    def kill(self, now: float, index: int = 0) -> str:
        """A replica dies at once; returns its id."""
        replica = [each for each in self.replicas if each.state == _RUNNING][index]
        self._bury(replica)
        self.lost = True
        return replica.id

    def listing(self, now: float) -> dict[str, Any]:
        """The answer to ``GET /api/serve/applications/``."""
        applications, groups = {}, []
        if self.application is not None:
            name = self.application["name"]
            blank = now < self.told + self.behaviour.blank
            applications[name] = self._details(blank=blank)
            if not blank:
                groups = [self._targets(protocol) for protocol in ("HTTP", "gRPC")]
        return {
            "controller_info": {},
            "proxy_location": "HeadOnly",
            "http_options": {"host": "0.0.0.0", "port": 8000},
            "grpc_options": {"port": 9000, "grpc_servicer_functions": []},
            "proxies": {},
            "deploy_mode": "MULTI_APP",
            "applications": applications,
            "target_capacity": None,
            "target_groups": groups,
        }

    def placement_groups(self) -> list[dict[str, Any]]:
        """What ``GET /api/v0/placement_groups`` lists; the id of a node is the name of its pod."""
        name, deployment = (self.application or {}).get("name", ""), self._deployment.get("name")
        return [
            {
                "placement_group_id": each.id,
                "name": f"SERVE_REPLICA::{name}#{deployment}#{each.id}",
                "state": "CREATED",
                "bundles": [{"node_id": pod} for pod in each.pods],
            }
            for each in self.replicas
            if self.hosts > 1 and len(each.pods) == self.hosts
        ]

    def nodes(self) -> list[dict[str, Any]]:
        """The answer to ``GET /api/v0/nodes``, as far as replicas are on them."""
        pods = sorted({pod for each in self.replicas for pod in each.pods})
        return [
            {"node_id": pod, "node_ip": node[0], "state": "ALIVE"}
            for pod in pods
            if (node := self.node_of(pod)) is not None
        ]

    def status(self) -> str:
        """Ray's word for the application."""
        if self.error:
            return "DEPLOY_FAILED"
        if self.is_serving and len(self.replicas) == self.wanted:
            return "RUNNING"
        return "UNHEALTHY" if self.lost else "DEPLOYING"

    @property
    def _deployment(self) -> Mapping[str, Any]:
        first: Mapping[str, Any] = (self.application or {}).get("deployments", [{}])[0]
        return first

    @property
    def _current(self) -> list[Replica]:
        return [each for each in self.replicas if each.deployed == self.deployed]

    @property
    def _old(self) -> list[Replica]:
        return [each for each in self.replicas if each.deployed != self.deployed]

    def _lose_replicas_of_lost_pods(self, now: float) -> None:
        for replica in list(self.replicas):
            if any(self.node_of(pod) is None for pod in replica.pods):
                self._bury(replica)
                self.lost = True

    def _end_what_is_over(self, now: float) -> None:
        for replica in list(self.replicas):
            if replica.due is None or replica.due > now:
                continue
            replica.due = None
            if replica.state == _STARTING:
                replica.state = _RUNNING
            elif replica.state == _STOPPING:
                self._bury(replica)

    def _flap(self, now: float) -> None:
        every = self.behaviour.flap_every
        if not every:
            return
        running = [each for each in self.replicas if each.state == _RUNNING]
        if self.flap_due and now >= self.flap_due and running:
            self._bury(self.source.choice(running))
            self.lost = True
        if now >= self.flap_due:
            self.flap_due = now + self.drawn(every)

    def _move_to_wanted(self, now: float) -> None:
        """One step of Serve's own plan: up to the number, and one old replica for each new one."""
        current = [each for each in self._current if each.state != _STOPPING]
        old = [each for each in self._old if each.state != _STOPPING]
        for replica in current[self.wanted :]:
            self._stop(replica, now)
        missing = self.wanted - len(current)
        if self._deployment.get("max_surge_percent", 100) > 0:
            # One more than wanted lives for a while; an old one goes when a new one serves.
            room = self.wanted + bool(old) - len(current) - len(old)
            running = sum(each.state == _RUNNING for each in current)
            spare = len(old) - (self.wanted - running)
        else:
            # An old one goes first, and only when it is gone its place is taken.
            room = self.wanted - len(self.replicas)
            starting = any(each.state == _STARTING for each in current)
            spare = 1 if old and missing and not starting and room <= 0 else 0
            spare = 0 if any(each.state == _STOPPING for each in self.replicas) else spare
        for _ in range(min(missing, room)):
            self.replicas.append(self._new(now))
        for replica in old[: max(0, spare)]:
            self._stop(replica, now)

    def _start(self, now: float) -> None:
        for replica in self.replicas:
            if replica.state != _STARTING or replica.due is not None:
                continue
            nodes = [self.node_of(pod) for pod in replica.pods]
            if len(nodes) == self.hosts and all(node is not None and node[1] for node in nodes):
                replica.due = now + self.drawn(self.behaviour.replica_start)

    def _new(self, now: float) -> Replica:
        letters = string.ascii_lowercase + string.digits
        identity = "".join(self.source.choices(letters, k=8))
        return Replica(id=identity, deployed=self.deployed, started=now)

    def _stop(self, replica: Replica, now: float) -> None:
        replica.state, replica.due = _STOPPING, now + self.drawn(self.behaviour.drain)

    def _bury(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        replica.state = _STOPPING
        self.dead = [*self.dead[1 - _KEPT_DEAD :], replica]

    def drawn(self, seconds: float) -> float:
        """A delay around what the behaviour says."""
        return seconds * self.source.uniform(0.5, 1.5)

    def _details(self, *, blank: bool) -> dict[str, Any]:
        application = dict(self.application or {})
        deployment = self._deployment
        status = self.status()
        details = {
            "name": deployment.get("name", ""),
            "status": {"RUNNING": "HEALTHY", "DEPLOYING": "UPDATING"}.get(status, status),
            "status_trigger": "CONFIG_UPDATE_STARTED",
            "message": self.error,
            "deployment_config": dict(deployment),
            "target_num_replicas": self.wanted,
            "required_resources": {},
            "replicas": [_replica(each, self.node_of) for each in self.replicas],
            "recent_dead_replicas": [_replica(each, self.node_of) for each in self.dead],
        }
        return {
            "name": application["name"],
            "route_prefix": application["route_prefix"],
            "docs_path": None,
            "status": "DEPLOYING" if blank and not self.error else status,
            "message": self.error,
            "last_deployed_time_s": self.told,
            "deployed_app_config": application,
            "source": "declarative",
            "deployments": {} if blank else {deployment["name"]: details},
            "external_scaler_enabled": False,
        }

    def _targets(self, protocol: str) -> dict[str, Any]:
        application = self.application or {}
        name, deployment = application["name"], self._deployment["name"]
        targets = []
        for replica in self.replicas:
            node = self.node_of(replica.pod) if replica.pod else None
            if protocol == "HTTP" and replica.state == _RUNNING and node is not None:
                targets.append(
                    {
                        "ip": node[0],
                        "port": _PORT,
                        "instance_id": replica.pod,
                        "name": f"SERVE_REPLICA::{name}#{deployment}#{replica.id}",
                    }
                )
        # Where an application has no replica that serves, Ray lists its proxy.
        proxy = {"ip": "127.0.0.1", "port": 8000, "instance_id": "", "name": "SERVE_PROXY_ACTOR-0"}
        return {
            "targets": targets or [proxy],
            "route_prefix": application["route_prefix"],
            "protocol": protocol,
            "app_name": name,
            "ingress_request_router_targets": [],
            "ingress_deployment_name": deployment,
        }


def _replica(replica: Replica, node_of: Callable[[str], tuple[str, bool] | None]) -> dict[str, Any]:
    node = node_of(replica.pod) if replica.pod else None
    return {
        "node_id": replica.pod,
        "node_ip": node[0] if node else None,
        "node_instance_id": replica.pod,
        "actor_id": replica.id,
        "actor_name": f"SERVE_REPLICA::{replica.id}",
        "worker_id": replica.id,
        "log_file_path": f"/serve/replica_{replica.id}.log",
        "replica_id": replica.id,
        "state": replica.state,
        "pid": 1 if replica.pod else None,
        "start_time_s": replica.started,
    }


def _code(application: Mapping[str, Any]) -> tuple[object, ...]:
    """What Serve rolls out anew when it changes."""
    actors = [each.get("ray_actor_options") for each in application["deployments"]]
    keys = ("import_path", "args", "runtime_env")
    return (*(application.get(key) for key in keys), actors)
