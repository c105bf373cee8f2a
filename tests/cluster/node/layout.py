"""Where a node cluster keeps its files, and which addresses it uses inside its own namespaces."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

NODE_NAME = "pointsman-node"
NODE_ADDRESS = "10.87.0.1"
NODE_NETWORK = "10.87.0.0/24"
NODE_GATEWAY = "10.87.0.254"
"""Nothing is there: a default route makes the kernel look at the service addresses at all."""
POD_NETWORK = "10.88.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_SERVICE_ADDRESS = "10.96.0.10"
DNS_PORT = 1053
API_PORT = 6443
ETCD_PORT = 2379
CLUSTER_DOMAIN = "cluster.local"

_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of one node cluster: all below one folder, which `down` removes."""

    name: str
    root: Path

    @classmethod
    def named(cls, name: str) -> Layout:
        """The cluster of this name on this machine.

        Raises:
            ValueError: the name does not fit into socket paths and cgroup names.
        """
        if not _NAME.match(name):
            raise ValueError(
                f"cluster name {name!r}: give 1 to 20 lower-case letters, digits and dashes"
            )
        return cls(name=name, root=Path(tempfile.gettempdir()) / f"pointsman-cluster-{name}")

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.root / "logs"

    @property
    def pod_logs(self) -> Path:
        """What the containers printed."""
        return self.root / "pod-logs"

    @property
    def pki(self) -> Path:
        """Keys, certificates and tokens."""
        return self.root / "pki"

    @property
    def etc(self) -> Path:
        """Configuration files that the run wrote."""
        return self.root / "etc"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, for inside the network namespace."""
        return self.root / "kubeconfig"

    @property
    def init_pid(self) -> Path:
        """Process id (outside) and start time of the namespaces' first process."""
        return self.root / "init.pid"

    @property
    def host_settings(self) -> Path:
        """Kernel settings as they were before the kubelet changed them."""
        return self.root / "host-settings.json"

    @property
    def audit_log(self) -> Path:
        """What service accounts asked of the API server: one JSON event a line."""
        return self.root / "logs" / "audit.jsonl"

    @property
    def containerd_socket(self) -> Path:
        """Of the cluster's own containerd."""
        return self.root / "containerd.sock"

    @property
    def kubelet_root(self) -> Path:
        """Volumes of the pods."""
        return self.root / "kubelet"

    @property
    def cgroup(self) -> str:
        """Cgroup, in every hierarchy, below which all pods are."""
        return f"pointsman-{self.name}"


def cache_folder() -> Path:
    """Images and root file systems that outlive a run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pointsman" / "cluster"
