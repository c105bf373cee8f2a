"""kopf's part: it watches ModelPools and RoutePolicies, and tells the store. It writes nothing.

There are only ``on.event`` handlers, which leave no finalizer, annotation or status behind; what
they are told goes into the store, and everything else follows from there.
"""

from __future__ import annotations

from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from pointsman_kube.client import WATCH_SERVER_SECONDS, WATCH_SILENCE_SECONDS
from pointsman_operator.store import Store, Table


def operator_registry(store: Store, configuration: Configuration) -> kopf.OperatorRegistry:
    """The handlers, as kopf takes them.

    Args:
        configuration: of our own connection: kopf logs in as we do.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection_info(configuration)

    for table in store.tables():
        kopf.on.event(
            table.kind.group,
            table.kind.version,
            table.kind.plural,
            id=f"watch-{table.kind.plural}",
            registry=registry,
        )(_handler(table))
    return registry


def operator_settings() -> kopf.OperatorSettings:
    """How kopf runs: alone (the Lease is ours), and without a trace in the cluster."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = WATCH_SERVER_SECONDS
    settings.watching.inactivity_timeout = WATCH_SILENCE_SECONDS
    settings.watching.reconnect_backoff = 0.5
    settings.networking.connect_timeout = 5.0
    settings.networking.request_timeout = 30.0
    settings.networking.enforce_retry_after = True
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 0.5
    # Ending in time is the business of the process, which knows of the Lease.
    settings.process.ultimate_exiting_timeout = None
    return settings


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """Our own connection, as kopf describes one."""
    token = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, _, value = (token or "").partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=value or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
    )


def _handler(table: Table[Any]) -> Any:
    async def tell(event: Any, **_: Any) -> None:
        obj = dict(event["object"])
        if event["type"] == "DELETED":
            metadata = obj["metadata"]
            key = (str(metadata.get("namespace") or ""), str(metadata["name"]))
            table.remove(key, uid=str(metadata.get("uid") or ""))
        else:
            table.take(obj)

    return tell
