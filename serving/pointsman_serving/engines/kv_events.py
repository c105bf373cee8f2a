"""vLLM's KV cache events: published by the engine, and told to gateways in a reply header.

vLLM's publisher binds one port for events and one for the replay of those that a subscriber has
missed, both chosen by the system on the address of this node. The header names them:
``x-pointsman-kv-events: 40001;replay=40002``.
Source: vLLM's ``--kv-events-config`` and ``ZmqEventPublisher``.
"""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger(__name__)

KV_EVENTS_HEADER: Final = b"x-pointsman-kv-events"

# With this host and port vLLM binds a free port of VLLM_HOST_IP; any other host it connects to.
_FREE_PORT: Final = "tcp://*:0"


def kv_events_argument() -> str:
    """The engine's argument that makes it publish."""
    config = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": _FREE_PORT,
        "replay_endpoint": _FREE_PORT,
    }
    return f"--kv-events-config={json.dumps(config, separators=(',', ':'))}"


def bind_to_this_node() -> None:
    """Make vLLM bind to the address under which Ray, and so the gateways, know this node."""
    import ray

    host = ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
    os.environ.setdefault("VLLM_HOST_IP", host)


def kv_events_value(sources: Mapping[int, Any]) -> bytes | None:
    """The header's value.

    Args:
        sources: vLLM's resolved publisher configuration of each data-parallel rank.

    Returns:
        None where nothing is published, or by several caches: who gets a request is then the
        engine's choice, so that nobody could say what it will find cached.
    """
    if len(sources) != 1:
        if sources:
            _LOG.warning("%d ranks publish KV events: gateways are not told of them", len(sources))
        return None
    (config,) = sources.values()
    ports = [_port(config.endpoint), _port(config.replay_endpoint)]
    if None in ports:
        _LOG.warning("vLLM publishes KV events at %s, not at a TCP port", config.endpoint)
        return None
    return f"{ports[0]};replay={ports[1]}".encode()


def _port(endpoint: str | None) -> int | None:
    scheme, _, port = (endpoint or "").rpartition(":")
    return int(port) if scheme.startswith("tcp://") and port.isdigit() and int(port) else None


class KvEventsHeader:
    """ASGI middleware that names the ports in every reply."""

    def __init__(self, app: ASGIApp, value: bytes) -> None:
        """Wrap an application."""
        self._app = app
        self._header = (KV_EVENTS_HEADER, value)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), self._header]
            await send(message)

        await self._app(scope, receive, send_named)
