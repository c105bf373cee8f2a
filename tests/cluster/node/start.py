"""Starting a node cluster, phase by phase."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.binaries import binary
from tests.cluster.node import control_plane, host, images, kuberay, node_agents, recipes
from tests.cluster.node.cluster import DEFAULT_NAME, NodeCluster, remove
from tests.cluster.node.containerd import PAUSE_IMAGE, start_containerd
from tests.cluster.node.credentials import write_credentials
from tests.cluster.node.layout import DNS_PORT, NODE_ADDRESS, NODE_NAME, Layout
from tests.cluster.node.phases import Phases
from tests.cluster.node.process import ClusterError, wait_for
from tests.cluster.node.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.node.images import Recipe

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "kubectl",
)
_API_SECONDS = 120.0
_NODE_SECONDS = 60.0
_LEFTOVER_SECONDS = 3.0
"""The namespaces of a run that was killed end by themselves sooner than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a cluster is to be."""

    name: str = DEFAULT_NAME
    keep: bool = False
    """Whether it stays when this process ends."""
    with_kuberay: bool = True
    images: Sequence[Recipe] = field(default_factory=tuple)
    """Images that its pods use."""


def start(options: Options, phases: Phases | None = None) -> NodeCluster:
    """Start a cluster; what a killed one of this name left is removed first.

    Raises:
        ClusterError: the machine lacks something, or a part did not start; nothing stays behind.
    """
    phases = phases or Phases()
    layout = Layout.named(options.name)
    with phases.phase("check the machine"):
        host.require()
        _refuse_when_running(layout)
        remove(layout)
    with phases.phase("programs"):
        names = (*PROGRAMS, "kuberay-operator") if options.with_kuberay else PROGRAMS
        binaries = {name: binary(name) for name in names}
    pause = recipes.pause_image()
    wanted = [*options.images]
    if options.with_kuberay:
        wanted.append(recipes.kuberay_image(binaries))
    with phases.phase("build images"):
        for recipe in (pause, *wanted):
            images.build(recipe)
    sandbox = Sandbox(layout)
    try:
        return _start(options, phases, sandbox, binaries, pause, wanted)
    except BaseException:
        if os.environ.get("POINTSMAN_KEEP_BROKEN") != "1":
            remove(layout, sandbox=sandbox)
        raise


def _start(
    options: Options,
    phases: Phases,
    sandbox: Sandbox,
    binaries: dict[str, Path],
    pause: Recipe,
    wanted: Sequence[Recipe],
) -> NodeCluster:
    layout = sandbox.layout
    with phases.phase("namespaces"):
        for folder in (layout.logs, layout.etc, layout.pod_logs):
            folder.mkdir(parents=True)
        host.remember_settings(layout)
        host.make_cgroup(layout)
        sandbox.create(keep=options.keep)
        write_credentials(layout)
    with phases.phase("API server"):
        etcd = control_plane.start_etcd(sandbox, binaries)
        api_server = control_plane.start_api_server(sandbox, binaries)
        start_containerd(sandbox)
        images.load(sandbox, pause, name=PAUSE_IMAGE)
        cluster = NodeCluster(layout)
        cluster.sandbox = sandbox
        wait_for(
            "the API server gets ready",
            cluster.ready,
            timeout_seconds=_API_SECONDS,
            daemons=[etcd, api_server],
        )
    with phases.phase("node Ready"):
        daemons = [
            control_plane.start_controller_manager(sandbox, binaries),
            control_plane.start_scheduler(sandbox, binaries),
            node_agents.start_kubelet(sandbox, binaries),
            node_agents.start_kube_proxy(sandbox, binaries),
            node_agents.start_coredns(sandbox, binaries),
        ]
        items = {"apiVersion": "v1", "kind": "List", "items": node_agents.dns_objects()}
        cluster.kubectl("apply", "--server-side", "-f", "-", stdin=items)
        wait_for(
            "the node gets Ready",
            lambda: _node_ready(cluster) and _dns_answers(cluster),
            timeout_seconds=_NODE_SECONDS,
            daemons=daemons,
        )
    with phases.phase("load images"):
        for recipe in wanted:
            images.load(sandbox, recipe)
    if options.with_kuberay:
        with phases.phase("KubeRay"):
            kuberay.install(cluster, recipes.kuberay_image(binaries).reference)
    return cluster


def _refuse_when_running(layout: Layout) -> None:
    """What a killed run left may go, a cluster that somebody uses may not."""
    try:
        wait_for(
            "it has ended",
            lambda: Sandbox(layout).pid is None,
            timeout_seconds=_LEFTOVER_SECONDS,
        )
    except ClusterError:
        raise ClusterError(
            f"cluster {layout.name!r} runs already (process {Sandbox(layout).pid}): end it with "
            f"`python -m tests.cluster.node down --name {layout.name}`, or start another name"
        ) from None


def _dns_answers(cluster: NodeCluster) -> bool:
    with cluster.network(), socket.create_connection((NODE_ADDRESS, DNS_PORT), timeout=1):
        return True


def _node_ready(cluster: NodeCluster) -> bool:
    reply = cluster.request("GET", f"/api/v1/nodes/{NODE_NAME}")
    conditions = reply.body.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
