"""The endpoints that our own engines answer alike: health, metrics and the model's card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request


class LivingEngine(Protocol):
    """What says whether requests can be served."""

    @property
    def alive(self) -> bool:
        """False once the engine has failed."""


class ExposedMetrics(Protocol):
    """What says how the engine does."""

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""


def status_routes(engine: LivingEngine, metrics: ExposedMetrics) -> list[Route]:
    """vLLM's ``/health``, Ray Serve's ``/-/healthz`` and Prometheus' ``/metrics``."""

    async def health(_: Request) -> Response:
        return Response(status_code=200 if engine.alive else 503)

    async def healthz(_: Request) -> Response:
        if engine.alive:
            return PlainTextResponse("success")
        return PlainTextResponse("the engine has failed", status_code=503)

    async def exposition(_: Request) -> Response:
        return PlainTextResponse(
            metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return [
        Route("/health", health),
        Route("/-/healthz", healthz),
        Route("/metrics", exposition),
    ]


def model_card(model_name: str, *, created: int, max_model_len: int) -> dict[str, object]:
    """The model's entry in ``/v1/models``.

    Args:
        model_name: the name that requests ask for.
        created: seconds since the epoch.
        max_model_len: tokens of prompt and answer together.
    """
    return {
        "id": model_name,
        "object": "model",
        "created": created,
        "owned_by": "pointsman",
        "root": model_name,
        "parent": None,
        "max_model_len": max_model_len,
    }
