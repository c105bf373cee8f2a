"""`pointsman gateway`: the data plane alone, in a pod, told by the API server what to route."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from pointsman_api.labels import credentials_name
from pointsman_serving.cli.errors import UsageError
from pointsman_serving.cli.logs import LogLevel, json_logs
from pointsman_serving.gateway.settings import GatewaySettings

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PREFIX = "POINTSMAN_GATEWAY_"


def gateway(
    name: Annotated[
        str,
        typer.Option(
            envvar=f"{_PREFIX}NAME", help="The gateway's name; RoutePolicies refer to it."
        ),
    ] = "default",
    namespace: Annotated[
        str,
        typer.Option(
            envvar=[f"{_PREFIX}NAMESPACE", "POD_NAMESPACE"],
            help="Where the operator writes for it. [default: the pod's own]",
            show_default=False,
        ),
    ] = "",
    listen: Annotated[
        str,
        typer.Option(
            envvar=f"{_PREFIX}LISTEN",
            help="Address of both ports; :: takes IPv4 too. [default: :: where there is IPv6, "
            "else 0.0.0.0]",
            show_default=False,
        ),
    ] = "",
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, envvar=f"{_PREFIX}PORT", help="For clients; 0: any free."),
    ] = 8080,
    admin_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            envvar=f"{_PREFIX}ADMIN_PORT",
            help="For /status, /metrics, /readyz and /healthz; 0: any free.",
        ),
    ] = 9090,
    lame_duck: Annotated[
        float,
        typer.Option(
            min=0.0,
            envvar=f"{_PREFIX}LAME_DUCK_SECONDS",
            help="Seconds to serve on after SIGTERM while /readyz says no.",
        ),
    ] = 5.0,
    drain: Annotated[
        float,
        typer.Option(
            min=0.0,
            envvar=f"{_PREFIX}DRAIN_SECONDS",
            help="Seconds that replies under way have after that.",
        ),
    ] = 600.0,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            envvar=f"{_PREFIX}KUBECONFIG",
            help="[default: KUBECONFIG, the pod's service account, or ~/.kube/config]",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            envvar=[f"{_PREFIX}LOG_LEVEL", "POINTSMAN_LOG_LEVEL"],
            case_sensitive=False,
            help="One JSON object a line goes to stderr.",
        ),
    ] = LogLevel.INFO,
) -> None:
    """Serve the endpoint inside Kubernetes, until SIGTERM. Every option is a variable too."""
    json_logs(log_level)
    try:
        settings = GatewaySettings(
            name=name,
            host=listen or _every_address(),
            port=port,
            admin_port=admin_port,
            lame_duck_seconds=lame_duck,
            drain_seconds=drain,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    namespace = namespace or _own_namespace()
    # Loaded late: the other commands need neither a server nor a client for Kubernetes.
    import uvloop

    uvloop.run(_serve(settings, namespace, str(kubeconfig) if kubeconfig else None))


async def _serve(settings: GatewaySettings, namespace: str, kubeconfig: str | None) -> None:
    from pointsman_kube.client import Kube
    from pointsman_kube.config import ConfigurationError
    from pointsman_serving.gateway.kubernetes.secrets import GatewaySecret
    from pointsman_serving.gateway.kubernetes.source import KubernetesSource
    from pointsman_serving.gateway.server import Gateway, ListenError

    secret = GatewaySecret(f"{namespace}/{credentials_name(settings.name)}")
    served = Gateway(settings=settings, table=None, credentials=secret)
    try:
        async with await Kube.connect(
            kubeconfig, field_manager="pointsman-gateway", may_write=lambda: False
        ) as kube:
            source = KubernetesSource(served, kube, secret, namespace=namespace)
            await served.serve([source])
    except (ConfigurationError, ListenError) as error:
        raise UsageError(getattr(error, "strerror", None) or str(error)) from error


def _every_address() -> str:
    """What listens to everybody, in clusters of IPv4, of IPv6 and of both."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        raise UsageError(
            "the namespace is not known: this is not a pod with a service account; give "
            "--namespace, where the operator runs"
        ) from None
