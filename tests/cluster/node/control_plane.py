"""etcd, API server, controller manager and scheduler, as processes inside the sandbox."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cluster.audit import AUDIT_POLICY
from tests.cluster.node import layout as at

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.cluster.node.layout import Layout
    from tests.cluster.node.process import Daemon
    from tests.cluster.node.sandbox import Sandbox

# What pods ask of the API server, so that a test can compare it with what they may ask.
_AUDIT_RULES = [
    {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
    {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
    {"level": "None"},
]


def start_etcd(sandbox: Sandbox, binaries: Mapping[str, Path]) -> Daemon:
    """Start etcd; the API server waits for it by itself."""
    url = f"http://127.0.0.1:{at.ETCD_PORT}"
    return sandbox.start(
        "etcd",
        [
            binaries["etcd"],
            f"--data-dir={sandbox.layout.root / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            # The data lives no longer than the run.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
    )


def start_api_server(sandbox: Sandbox, binaries: Mapping[str, Path]) -> Daemon:
    """Start the API server, which is ready some seconds later."""
    layout = sandbox.layout
    audit_policy = layout.etc / "audit-policy.json"
    audit_policy.write_text(json.dumps({**AUDIT_POLICY, "rules": _AUDIT_RULES}))
    pki = layout.pki
    return sandbox.start(
        "kube-apiserver",
        [
            binaries["kube-apiserver"],
            f"--etcd-servers=http://127.0.0.1:{at.ETCD_PORT}",
            f"--advertise-address={at.NODE_ADDRESS}",
            f"--bind-address={at.NODE_ADDRESS}",
            f"--secure-port={at.API_PORT}",
            f"--service-cluster-ip-range={at.SERVICE_NETWORK}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--token-auth-file={pki / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            f"--service-account-issuer=https://kubernetes.default.svc.{at.CLUSTER_DOMAIN}",
            f"--service-account-key-file={pki / 'service-accounts.key'}",
            f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
            # Without a client certificate the kubelet refuses `kubectl logs`.
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={audit_policy}",
            f"--audit-log-path={layout.audit_log}",
            "--profiling=false",
        ],
    )


def start_controller_manager(sandbox: Sandbox, binaries: Mapping[str, Path]) -> Daemon:
    """Start the controller manager."""
    layout = sandbox.layout
    return sandbox.start(
        "kube-controller-manager",
        [
            binaries["kube-controller-manager"],
            *_client(layout),
            "--bind-address=127.0.0.1",
            f"--root-ca-file={layout.pki / 'ca.crt'}",
            f"--service-account-private-key-file={layout.pki / 'service-accounts.key'}",
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=false",
            "--leader-elect=false",
        ],
    )


def start_scheduler(sandbox: Sandbox, binaries: Mapping[str, Path]) -> Daemon:
    """Start the scheduler."""
    return sandbox.start(
        "kube-scheduler",
        [
            binaries["kube-scheduler"],
            *_client(sandbox.layout),
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ],
    )


def _client(layout: Layout) -> list[str]:
    return [
        f"--kubeconfig={layout.kubeconfig}",
        f"--authentication-kubeconfig={layout.kubeconfig}",
        f"--authorization-kubeconfig={layout.kubeconfig}",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]
