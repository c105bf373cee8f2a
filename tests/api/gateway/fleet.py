"""Real gateways and Simulated engines beside a real API server, played the operator to."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pointsman_api.endpoint_slices import PoolEndpoints, ReplicaEndpoint, encode_slices
from pointsman_api.labels import credentials_name
from pointsman_api.route_config import route_config_maps
from pointsman_api.route_table import BackendType, PoolEntry, Route, RouteTable, Rule, Target
from tests.cluster.cluster import APPLY_PATCH, Cluster, Reply
from tests.cluster.processes import Process

TOKEN = "pool-token"
ACCOUNT = "gateway"
# No more than it needs; the chart grants the same.
ROLE_RULES: tuple[dict[str, Any], ...] = (
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["list", "watch"],
    },
    {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [credentials_name("default")],
        "verbs": ["list", "watch"],
    },
)


def own_address() -> str:
    """An address of this machine that a slice may hold: loopback ones are refused there."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: it only asks which address would be the sender's.
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
        if not address.startswith("127."):
            return address
    pytest.skip("this machine has no IPv4 address but loopback, and slices may not hold that one")


def until(condition: Callable[[], object], *, seconds: float = 20.0, what: str) -> float:
    """Wait for a condition; returns how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            pytest.fail(f"{what}: not so after {seconds:g} s")
        time.sleep(0.01)
    return time.monotonic() - began


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply over HTTP."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def ask(
    port: int,
    path: str,
    body: object = None,
    *,
    host: str = "127.0.0.1",
) -> Answer:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        data = None if body is None else json.dumps(body)
        method = "GET" if body is None else "POST"
        connection.request(method, path, data, {"content-type": "application/json"})
        reply = connection.getresponse()
        return Answer(
            reply.status,
            {name.lower(): value for name, value in reply.getheaders()},
            reply.read().decode(),
        )
    finally:
        connection.close()


def chat(model: str = "m", **more: object) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 4,
        **more,
    }


def table_to(*pools: str, target: str = "", model: str = "m") -> RouteTable:
    """A table with these pools whose model ``m`` goes to one of them."""
    rule = Rule(name="default", targets=(Target(pool=target or pools[0]),))
    return RouteTable(
        pools={
            name: PoolEntry(
                name=name,
                served_model_name="simulated",
                backend=BackendType.RAY_SERVE,
                engine="Simulated",
            )
            for name in pools
        },
        routes={model: Route(policy="policy", rules=(rule,))},
    )


@dataclass
class Engine:
    """A Simulated engine that asks for the token."""

    host: str
    port: int
    process: Process


@dataclass
class GatewayProcess:
    """A real ``pointsman gateway``."""

    process: Process
    port: int = 0
    admin_port: int = 0

    def chat(self, **more: object) -> Answer:
        return ask(self.port, "/v1/chat/completions", chat(**more))

    @property
    def chosen(self) -> str:
        """The pool that a request goes to now; empty where it is refused."""
        return self.chat().headers.get("x-pointsman-pool", "")

    @property
    def status(self) -> Any:
        return ask(self.admin_port, "/status").json

    @property
    def ready(self) -> bool:
        return ask(self.admin_port, "/readyz").status == 200

    def metric(self, sample: str) -> float:
        text = ask(self.admin_port, "/metrics").text
        (line,) = [line for line in text.splitlines() if line.startswith(f"{sample} ")]
        return float(line.rpartition(" ")[2])

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = self.process.log.read_text().splitlines()
        return [json.loads(line) for line in lines]

    def said(self, part: str) -> list[dict[str, Any]]:
        return [each for each in self.log if part in each["event"]]

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)


@dataclass
class Fleet:
    """One namespace with what runs for it."""

    cluster: Cluster
    namespace: str
    folder: Path
    host: str
    processes: list[Process] = field(default_factory=list)

    # What the operator writes.

    def apply(self, *objects: Any) -> None:
        for item in objects:
            reply = self.put(item)
            assert reply.status in (200, 201), reply.message

    def put(self, item: Any) -> Reply:
        group = "api/v1" if item["apiVersion"] == "v1" else f"apis/{item['apiVersion']}"
        plural = f"{item['kind'].lower()}s"
        path = f"/{group}/namespaces/{self.namespace}/{plural}/{item['metadata']['name']}"
        return self.cluster.request(
            "PATCH",
            f"{path}?fieldManager=pointsman-operator&force=true",
            item,
            content_type=APPLY_PATCH,
        )

    def apply_table(self, table: RouteTable) -> None:
        self.apply(*route_config_maps(table, gateway="default", namespace=self.namespace))

    def apply_secret(self, **values: str) -> None:
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": credentials_name("default"), "namespace": self.namespace},
                "data": {
                    key: base64.b64encode(value.encode()).decode() for key, value in values.items()
                },
            }
        )

    def slices_of(self, pool: str, engines: Sequence[Engine]) -> Sequence[dict[str, Any]]:
        endpoints = tuple(
            ReplicaEndpoint(replica=f"r{each.port}", host=each.host, port=each.port)
            for each in engines
        )
        found = PoolEndpoints(namespace="default", pool=pool, endpoints=endpoints)
        return encode_slices(found, namespace=self.namespace)

    def apply_replicas(self, pool: str, *engines: Engine) -> None:
        self.apply(*self.slices_of(pool, engines))

    def delete_slices(self, pool: str, *engines: Engine) -> None:
        for item in self.slices_of(pool, engines):
            path = f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"
            reply = self.cluster.request("DELETE", f"{path}/{item['metadata']['name']}")
            assert reply.status == 200, reply.message

    def allow_gateway(self) -> Path:
        """A kubeconfig of a service account with the chart's rights."""
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": ACCOUNT, "namespace": self.namespace},
            "rules": list(ROLE_RULES),
        }
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": ACCOUNT, "namespace": self.namespace},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": ACCOUNT,
            },
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": self.namespace}],
        }
        self.apply(role, binding)
        token = self.cluster.service_account_token(self.namespace, ACCOUNT)
        return self.cluster.write_kubeconfig(
            self.folder / "gateway-kubeconfig", token=token, namespace=self.namespace
        )

    # What runs.

    def engine(self, *flags: str) -> Engine:
        """Start one."""
        command = [
            "env",
            f"POINTSMAN_REPLICA_TOKEN={TOKEN}",
            f"POINTSMAN_RUN_DIR={self.folder}",
            *(sys.executable, "-m", "pointsman_serving.cli.main", "engine", "simulated"),
            *(f"--host={self.host}", "--port=0", *flags),
        ]
        process = self._start("engine", command)
        port = int(self._wait_for(process, r"listens on http://[^ ]+:(\d+)/v1"))
        until(lambda: _answers(self.host, port), what="the engine listens", seconds=60.0)
        return Engine(self.host, port, process)

    def gateway(self, *options: str) -> GatewayProcess:
        """Start one; it need not be ready."""
        kubeconfig = self.allow_gateway()
        command = [
            "env",
            "POINTSMAN_GATEWAY_LISTEN=127.0.0.1",
            "POINTSMAN_GATEWAY_PORT=0",
            f"POINTSMAN_GATEWAY_NAMESPACE={self.namespace}",
            *(sys.executable, "-m", "pointsman_serving.cli.main", "gateway"),
            *(f"--kubeconfig={kubeconfig}", "--admin-port=0", "--lame-duck=0", *options),
        ]
        found = GatewayProcess(self._start("gateway", command))
        self._wait_for(found.process, r"gateway listens")
        (listens,) = found.said("gateway listens")
        found.port = int(listens["url"].rpartition(":")[2])
        found.admin_port = listens["admin_port"]
        return found

    def ready_gateway(self, *options: str) -> GatewayProcess:
        """Start one and wait until it is ready."""
        found = self.gateway(*options)
        until(lambda: found.ready, what="the gateway is ready")
        return found

    def close(self) -> None:
        for process in self.processes:
            process.stop(grace_seconds=0)

    def _start(self, name: str, command: Sequence[str]) -> Process:
        log = self.folder / f"{name}-{len(self.processes)}.log"
        process = Process(name, command, log=log)
        self.processes.append(process)
        return process

    @staticmethod
    def _wait_for(process: Process, pattern: str) -> str:
        """The first group of what is looked for in a process's log, or all of it."""
        found: list[str] = []

        def look() -> bool:
            assert process.is_alive, f"{process.name} ended:\n{process.tail()}"
            match = re.search(pattern, process.log.read_text())
            if match:
                found.append(match[match.re.groups])
            return bool(found)

        until(look, seconds=90.0, what=f"{process.name} says {pattern!r}")
        return found[0]


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        return ask(port, "/health", host=host).status == 200
    return False


@contextlib.contextmanager
def fleet_in(cluster: Cluster, namespace: str, folder: Path) -> Iterator[Fleet]:
    found = Fleet(cluster, namespace, folder, own_address())
    try:
        yield found
    finally:
        found.close()
