"""A real Kubernetes API on this machine without root: etcd and kube-apiserver, ready in seconds.

No controllers, no nodes: namespaces are not emptied and nothing is collected as garbage unless
``controllers`` names who does it; pods stay as they were written.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from tests.cluster.audit import AUDIT_POLICY, ApiCall, read_calls
from tests.cluster.binaries import binary
from tests.cluster.certificates import Authority, write_key
from tests.cluster.cluster import Cluster, kubeconfig_document
from tests.cluster.processes import Process, ProcessFailedError, free_port, wait_until_free

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

GARBAGE_COLLECTION = ("garbage-collector-controller", "namespace-controller")
"""The controllers that delete what an owner or a namespace leaves behind."""

_HOST = "127.0.0.1"
_LESS_GARBAGE_COLLECTION = "GOGC=400"
# Two processors are shared with what is tested; some hundred megabytes are not missed.
_ATTEMPTS = 3


class ApiServer(Cluster):
    """The cluster; as a context manager, or from ``start()`` to ``close()``.

    Its user is in ``system:masters``; authorization is RBAC, so that tokens of service accounts
    (``service_account_token``) may do only what is granted. Blocking calls only: in async tests
    use ``asyncio.to_thread(server.stop)``.

    Args:
        controllers: controllers of kube-controller-manager to run, such as
            ``GARBAGE_COLLECTION``; none by default.
    """

    can_stop = True

    def __init__(self, *, controllers: Sequence[str] = ()) -> None:
        self._programs = {name: binary(name) for name in ("etcd", "kube-apiserver")}
        if controllers:
            self._programs["kube-controller-manager"] = binary("kube-controller-manager")
        self._controllers = tuple(controllers)
        self.folder = Path(tempfile.mkdtemp(prefix="pointsman-api-"))
        self._processes: dict[str, Process] = {}
        token = secrets.token_hex(16)
        self._port, self._etcd_port = free_port(), free_port()
        authority = Authority("pointsman-test")
        kubeconfig = self.folder / "kubeconfig"
        document = kubeconfig_document(f"https://{_HOST}:{self._port}", authority.pem, token)
        kubeconfig.write_text(yaml.safe_dump(document), encoding="utf-8")
        super().__init__(kubeconfig)
        authority.write_server(
            self.folder / "server.crt",
            self.folder / "server.key",
            addresses=[_HOST, "10.96.0.1"],
            names=["localhost", "kubernetes.default.svc"],
        )
        (self.folder / "ca.crt").write_text(authority.pem, encoding="ascii")
        write_key(self.folder / "service-accounts.key")
        (self.folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
        (self.folder / "audit.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start what does not run, on the data that is there; returns when the API is ready."""
        self._run("etcd", self._etcd_arguments(), self._etcd_port, self._etcd_ready)
        self._run("kube-apiserver", self._api_server_arguments(), self._port, self._ready)
        if self._controllers and not self._alive("kube-controller-manager"):
            arguments = self._controller_arguments()
            self._processes["kube-controller-manager"] = self._process(
                "kube-controller-manager", arguments
            )

    def stop(self, *, grace_seconds: float = 5.0) -> None:
        """End kube-apiserver: watches break, connections are refused. etcd keeps the data.

        With ``grace_seconds=0`` it is killed, as by a crash.
        """
        self._end("kube-apiserver", grace_seconds=grace_seconds)
        wait_until_free(self._port)

    def forget_history(self) -> None:
        """Compact etcd: who goes on with a watch after the next start gets 410 Gone.

        A running server still answers from its own memory; call it between stop and start.
        """
        revision = self._etcd("kv/range", {"key": "AA=="})["header"]["revision"]
        self._etcd("kv/compaction", {"revision": revision, "physical": True})

    def calls(self) -> list[ApiCall]:
        """Every call that the server has answered so far, from its audit log, oldest first."""
        return read_calls(self.folder / "audit.log")

    def rss_bytes(self) -> dict[str, int]:
        """Resident memory of each process."""
        return {name: each.rss_bytes() for name, each in self._processes.items() if each.is_alive}

    def pids(self) -> dict[str, int]:
        """Each process's id."""
        return {name: each.pid for name, each in self._processes.items() if each.is_alive}

    def close(self) -> None:
        """End all processes and remove their folder."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            # Nothing that would be worth writing down: the folder goes too.
            self._end(name, grace_seconds=0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(
        self, name: str, arguments: list[str], port: int, is_ready: Callable[[], bool]
    ) -> None:
        if self._alive(name):
            return
        for attempt in range(1, _ATTEMPTS + 1):
            wait_until_free(port)
            process = self._processes[name] = self._process(name, arguments)
            deadline = time.monotonic() + 60
            while process.is_alive and time.monotonic() < deadline:
                if is_ready():
                    return
                time.sleep(0.1)
            # Somebody else may have taken the port between the look and the start.
            taken = not process.is_alive and "address already in use" in process.tail(100)
            self._end(name, grace_seconds=0)
            if not taken or attempt == _ATTEMPTS:
                break
            time.sleep(1)
        raise ProcessFailedError(f"{name} did not get ready:\n{process.tail(30)}")

    def _process(self, name: str, arguments: list[str]) -> Process:
        words = ["env", _LESS_GARBAGE_COLLECTION, self._programs[name], *arguments]
        return Process(name, words, log=self.folder / f"{name}.log")

    def _alive(self, name: str) -> bool:
        return name in self._processes and self._processes[name].is_alive

    def _end(self, name: str, *, grace_seconds: float) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.stop(grace_seconds=grace_seconds)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.request("GET", "/readyz").status == 200
        return False

    def _etcd_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self._etcd("kv/range", {"key": base64.b64encode(b"\0").decode()}))
        return False

    def _etcd(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://{_HOST}:{self._etcd_port}/v3/{call}", json.dumps(body).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def _etcd_arguments(self) -> list[str]:
        url = f"http://{_HOST}:{self._etcd_port}"
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls=http://{_HOST}:0",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _api_server_arguments(self) -> list[str]:
        folder = self.folder
        return [
            f"--etcd-servers=http://{_HOST}:{self._etcd_port}",
            f"--bind-address={_HOST}",
            f"--secure-port={self._port}",
            f"--tls-cert-file={folder / 'server.crt'}",
            f"--tls-private-key-file={folder / 'server.key'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={folder / 'service-accounts.key'}",
            f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            # Nobody makes the account `default` of a namespace here, without which the plugin
            # refuses every pod.
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",
            "--profiling=false",
            f"--audit-policy-file={folder / 'audit.yaml'}",
            f"--audit-log-path={folder / 'audit.log'}",
        ]

    def _controller_arguments(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--controllers={','.join(self._controllers)}",
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials=false",
        ]
