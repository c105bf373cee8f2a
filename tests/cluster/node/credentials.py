"""Keys, certificates, tokens and the kubeconfig of one cluster, made anew for each start."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.cluster.certificates import Authority, write_key
from tests.cluster.cluster import kubeconfig_document
from tests.cluster.node import layout as at

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.node.layout import Layout

_API_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    f"kubernetes.default.svc.{at.CLUSTER_DOMAIN}",
)


def write_credentials(layout: Layout) -> None:
    """Write all of them below ``layout.pki`` and the administrator's kubeconfig."""
    pki = layout.pki
    pki.mkdir(mode=0o700)
    authority = _NodeAuthority("pointsman-test")
    (pki / "ca.crt").write_text(authority.pem, encoding="ascii")
    addresses = [at.NODE_ADDRESS, at.API_SERVICE_ADDRESS, "127.0.0.1"]
    authority.write_server(
        pki / "apiserver.crt", pki / "apiserver.key", addresses=addresses, names=_API_NAMES
    )
    authority.write_client(
        pki / "kubelet-client.crt", pki / "kubelet-client.key", name="kubelet-client"
    )
    write_key(pki / "service-accounts.key")
    token = secrets.token_hex(16)
    (pki / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    url = f"https://{at.NODE_ADDRESS}:{at.API_PORT}"
    layout.kubeconfig.touch(mode=0o600)
    layout.kubeconfig.write_text(json.dumps(kubeconfig_document(url, authority.pem, token)))


class _NodeAuthority(Authority):
    def write_client(self, certificate: Path, key: Path, *, name: str) -> None:
        """Write the certificate and key that the API server shows to the kubelet."""
        own_key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        signed = (
            self._builder(subject, own_key.public_key())
            .add_extension(usage, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        write_key(key, own_key)
