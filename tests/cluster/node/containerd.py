"""A containerd of the cluster's own, and the pod network's configuration."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from tests.cluster.node import layout as at
from tests.cluster.node.process import Daemon, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.cluster.node.layout import Layout
    from tests.cluster.node.sandbox import Sandbox

CNI_PROGRAMS = "/usr/lib/cni"
PAUSE_IMAGE = "localhost/pause:3.10"
_START_SECONDS = 30.0


def start_containerd(sandbox: Sandbox) -> Daemon:
    """Start it and wait until it answers."""
    layout = sandbox.layout
    network = layout.etc / "cni"
    network.mkdir(parents=True)
    (network / "10-pods.conflist").write_text(json.dumps(_pod_network()))
    config = layout.etc / "containerd.toml"
    config.write_text(_config(layout, network))
    daemon = sandbox.start("containerd", [_program("containerd"), "--config", config])
    wait_for(
        "containerd answers",
        lambda: "Version" in ctr(sandbox, ["version"]),
        timeout_seconds=_START_SECONDS,
        daemons=[daemon],
    )
    return daemon


def ctr(sandbox: Sandbox, words: Sequence[str | Path], *, timeout_seconds: float = 600.0) -> str:
    """Run containerd's own client where the pods' images are."""
    socket = sandbox.layout.containerd_socket
    return sandbox.run(
        [_program("ctr"), f"--address={socket}", "--namespace=k8s.io", *words],
        timeout_seconds=timeout_seconds,
    )


def _pod_network() -> dict[str, object]:
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": at.POD_NETWORK}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _config(layout: Layout, network: Path) -> str:
    # Some hosts forbid lowering oom_score_adj, and every pod sandbox fails without the restriction.
    return f"""
version = 2
root = "{layout.root / "containerd"}"
state = "{layout.root / "containerd-state"}"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{layout.containerd_socket}"
[debug]
  level = "warn"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE_IMAGE}"
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{network}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def _program(name: str) -> str:
    return shutil.which(name) or f"/usr/bin/{name}"
