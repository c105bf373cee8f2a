"""Where the API server is and who we are there: the library's own ways, without its defaults."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import getproxies_environment

from kubernetes.aio.client import Configuration
from kubernetes.aio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
    refresh_token,
)

from pointsman_kube.tasks import end_task


class ConfigurationError(Exception):
    """There is no usable configuration; says what was looked for and what to do."""


async def load_configuration(kubeconfig: str | None = None) -> tuple[Configuration, Any]:
    """The connection's configuration, and a loader whose token has to be renewed (or None).

    A kubeconfig that is named (by the argument or the variable KUBECONFIG) is used; else the
    pod's service account; else ``~/.kube/config``.

    Raises:
        ConfigurationError: none of them is there, or it cannot be read.
    """
    configuration = Configuration()
    # One retry policy only: ours, which knows which calls may be repeated.
    configuration.retries = None
    # Only for proxies: aiohttp would look for a .netrc, in a thread, before every call.
    configuration.client_session_kwargs = {"trust_env": bool(getproxies_environment())}
    named = kubeconfig or os.environ.get("KUBECONFIG") or None
    try:
        if named is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return configuration, None
        place = named or _home_file()
        if not _is_there(place):
            raise ConfigurationError(
                f"no Kubernetes configuration: {place} is not a file, and this is not a pod with a "
                "service account. Give --kubeconfig FILE or set KUBECONFIG"
            )
        loader = await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=place, client_configuration=configuration, persist_config=False
        )
    except (ConfigException, OSError, ValueError) as error:
        raise ConfigurationError(f"the Kubernetes configuration cannot be used: {error}") from error
    return configuration, loader


@contextlib.asynccontextmanager
async def renewed_token(configuration: Configuration, loader: Any) -> AsyncIterator[None]:
    """Keep the token of an exec plugin fresh while the block runs; service accounts do it alone."""
    if loader is None:
        yield
        return
    renewal = refresh_token(loader, configuration)  # type: ignore[no-untyped-call]
    task = asyncio.create_task(renewal, name="kubeconfig token")
    try:
        yield
    finally:
        await end_task(task)


def _home_file() -> str:
    return str(Path("~/.kube/config").expanduser())


def _is_there(place: str) -> bool:
    return any(Path(part).is_file() for part in place.split(os.pathsep))
