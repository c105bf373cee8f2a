"""Kubelet, kube-proxy and CoreDNS: what makes the sandbox a node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cluster.node import layout as at
from tests.cluster.node.process import Daemon

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.cluster.node.sandbox import Sandbox

MAX_PODS = 60


def start_kubelet(sandbox: Sandbox, binaries: Mapping[str, Path]) -> Daemon:
    """Start the kubelet; the node gets Ready some seconds later."""
    layout = sandbox.layout
    resolvers = layout.etc / "resolv.conf"
    # Pods know the cluster's names and no others.
    resolvers.write_text("")
    config = layout.etc / "kubelet.json"
    containerd = f"unix://{layout.containerd_socket}"
    values = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": at.NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": containerd,
        "imageServiceEndpoint": containerd,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [at.DNS_SERVICE_ADDRESS],
        "clusterDomain": at.CLUSTER_DOMAIN,
        "resolvConf": str(resolvers),
        "maxPods": MAX_PODS,
        "evictionHard": {
            "memory.available": "1%",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "localStorageCapacityIsolation": False,
        "volumeStatsAggPeriod": "-1s",
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "enableControllerAttachDetach": False,
    }
    config.write_text(json.dumps(values, indent=1))
    return sandbox.start(
        "kubelet",
        [
            binaries["kubelet"],
            f"--config={config}",
            f"--kubeconfig={layout.kubeconfig}",
            f"--root-dir={layout.kubelet_root}",
            f"--cert-dir={layout.pki / 'kubelet'}",
            f"--hostname-override={at.NODE_NAME}",
            f"--node-ip={at.NODE_ADDRESS}",
        ],
    )


def start_kube_proxy(sandbox: Sandbox, binaries: Mapping[str, Path]) -> Daemon:
    """Start kube-proxy, which makes service addresses work."""
    config = sandbox.layout.etc / "kube-proxy.json"
    values = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(sandbox.layout.kubeconfig)},
        "clusterCIDR": at.POD_NETWORK,
        "hostnameOverride": at.NODE_NAME,
        "bindAddress": at.NODE_ADDRESS,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "iptables": {"minSyncPeriod": "100ms"},
        # The machine's connection tracking limits are not this run's to change.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }
    config.write_text(json.dumps(values, indent=1))
    return sandbox.start("kube-proxy", [binaries["kube-proxy"], f"--config={config}"])


def start_coredns(sandbox: Sandbox, binaries: Mapping[str, Path]) -> Daemon:
    """Start CoreDNS beside the pods; :func:`dns_objects` is how they find it."""
    config = sandbox.layout.etc / "Corefile"
    config.write_text(
        f""".:{at.DNS_PORT} {{
  errors
  kubernetes {at.CLUSTER_DOMAIN} in-addr.arpa {{
    kubeconfig {sandbox.layout.kubeconfig}
    ttl 1
  }}
  cache 1
}}
"""
    )
    return sandbox.start("coredns", [binaries["coredns"], "-conf", config])


def dns_objects() -> list[dict[str, object]]:
    """The Service ``kube-dns`` and its one endpoint, the node's own address."""
    labels = {"kubernetes.io/service-name": "kube-dns"}
    protocols = ("UDP", "TCP")
    service: dict[str, object] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {
            "clusterIP": at.DNS_SERVICE_ADDRESS,
            "ports": [
                {"name": name.lower(), "protocol": name, "port": 53, "targetPort": at.DNS_PORT}
                for name in protocols
            ],
        },
    }
    endpoints: dict[str, object] = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [at.NODE_ADDRESS], "conditions": {"ready": True}}],
        "ports": [
            {"name": name.lower(), "protocol": name, "port": at.DNS_PORT} for name in protocols
        ],
    }
    return [service, endpoints]
