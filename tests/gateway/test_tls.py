"""External endpoints over TLS."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pointsman_api.route_table import BackendType, ExternalEndpoint, PoolEntry, RouteTable
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.harness import Answer, ask, chat, post, table_of, until


def certificate(folder: Path) -> Path:
    """A key and a certificate for localhost that signs itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "localhost.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


async def ask_over_tls(pem: Path, requests: list[bytes]) -> tuple[list[Answer], FakeEngine]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    engine = FakeEngine("tls", tls=context)
    async with engine.running():
        pool = PoolEntry(
            name="p",
            served_model_name="m",
            backend=BackendType.EXTERNAL,
            external_endpoints=(
                ExternalEndpoint(url=f"https://localhost:{engine.port}/v1", model_name="m"),
            ),
        )
        table = RouteTable(pools={"p": pool}, routes=table_of().routes)
        gateway = Gateway(settings=GatewaySettings(port=0), table=table)
        async with gateway.running():
            await until(lambda: bool(gateway.plane.replicas["p"]))
            replies = [await ask(gateway, request) for request in requests]
        await asyncio.sleep(0.01)
    return replies, engine


async def test_tls_carries_requests_when_the_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    requests = [post(chat(text="x" * 200_000)), post(chat(stream=True)), post(chat())]
    replies, engine = await ask_over_tls(pem, requests)
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert replies[1].body.endswith(b"data: [DONE]\n\n")
    assert engine.connections == 1


async def test_tls_is_refused_when_the_certificate_is_unknown(tmp_path: Path) -> None:
    (reply,), engine = await ask_over_tls(certificate(tmp_path), [post(chat())])
    assert reply.status == 503
    assert "certificate" in str(reply.error["message"]).lower()
    assert engine.calls == []
