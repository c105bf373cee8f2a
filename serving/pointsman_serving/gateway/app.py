"""Every path that is not hot: models, explanations, health and metrics."""

from __future__ import annotations

import time
from typing import Any

import prometheus_client
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pointsman_serving.gateway import openai, schemas
from pointsman_serving.gateway.body import parse_body
from pointsman_serving.gateway.headers import parse_headers, request_id_of
from pointsman_serving.gateway.openai import ApiError, BadRequestError
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.gateway.status import status_of
from pointsman_serving.gateway.version import installed_version
from pointsman_serving.routing.explain import explain
from pointsman_serving.routing.types import Api


def create_app(plane: DataPlane) -> FastAPI:
    """The ASGI application of one gateway, for its clients."""
    docs = plane.settings.docs
    app = _bare_app(
        docs_url="/docs" if docs else None, openapi_url="/openapi.json" if docs else None
    )
    created = int(time.time())

    @app.get("/v1/models")
    async def list_models() -> dict[str, object]:
        """The names that requests may ask for."""
        return {
            "object": "list",
            "data": [_model(name, created) for name in sorted(plane.table.routes)],
        }

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, object]:
        """One name."""
        if name not in plane.table.routes:
            raise BadRequestError(openai.unknown_model(name, plane.table.routes))
        return _model(name, created)

    _add_explain(app, plane)
    _add_probes(app, plane)
    if plane.settings.admin_port is None:
        _add_readings(app, plane)
    return app


def create_admin_app(plane: DataPlane) -> FastAPI:
    """The ASGI application of a gateway's admin port: for operators, probes and Prometheus."""
    app = _bare_app()
    _add_explain(app, plane)
    _add_probes(app, plane)
    _add_readings(app, plane)
    return app


def _bare_app(*, docs_url: str | None = None, openapi_url: str | None = None) -> FastAPI:
    app = FastAPI(
        title="Pointsman gateway",
        version=installed_version(),
        docs_url=docs_url,
        redoc_url=None,
        openapi_url=openapi_url,
    )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return _error_response(_http_api_error(request, error), dict(error.headers or {}))

    @app.exception_handler(BadRequestError)
    async def bad_request(_request: Request, error: BadRequestError) -> Response:
        after = error.error.retry_after_seconds
        return _error_response(error.error, {} if after is None else {"retry-after": str(after)})

    @app.exception_handler(Exception)
    async def fault(_request: Request, _error: Exception) -> Response:
        return _error_response(openai.internal_error())

    return app


def _add_explain(app: FastAPI, plane: DataPlane) -> None:
    @app.post("/v1/route/explain", openapi_extra=schemas.EXPLAIN)
    async def explain_route(request: Request) -> Response:
        """Where a chat body would go and why, with every candidate; nothing is sent."""
        return await _explain(plane, request)


def _add_probes(app: FastAPI, plane: DataPlane) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 while the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 once requests are served or held for a replica; the body tells of each pool."""
        return _ready(plane)


def _add_readings(app: FastAPI, plane: DataPlane) -> None:
    if plane.settings.status:

        @app.get("/status")
        async def status() -> Response:
            """What the operator asks every second; see ``status.status_of`` for the fields."""
            return _status(plane)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(
            prometheus_client.generate_latest(plane.metrics.registry),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )


def _model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "pointsman"}


def _ready(plane: DataPlane) -> Response:
    # A pool without replicas takes no traffic away: its requests are held here until it has one.
    # Which names answer and which pools are empty is in the body.
    serving = plane.serving_routes()
    if plane.ending:
        reason = "the gateway is ending"
    elif serving:
        reason = "ready"
    elif plane.table.routes:
        held = "no pool has a replica: requests are held until one has"
        reason = held if plane.heard else "nobody has told yet which replicas there are"
    elif plane.told_table:
        reason = "the route table has no routes: create a ModelPool"
    else:
        reason = "nobody has told yet what to route: the operator writes the route table"
    content = {
        "status": "ready" if plane.ready else "not ready",
        "reason": reason,
        "config_hash": plane.config_hash,
        "models": {name: name in serving for name in sorted(plane.table.routes)},
        "pools": {name: {"replicas": len(found)} for name, found in plane.replicas.items()},
    }
    return JSONResponse(content, status_code=200 if plane.ready else 503)


def _status(plane: DataPlane) -> Response:
    return JSONResponse(
        status_of(
            plane.readings(),
            name=plane.settings.name,
            version=installed_version(),
            ready=plane.ready,
            draining=plane.ending,
            uptime_seconds=plane.clock() - plane.started_at,
        )
    )


async def _explain(plane: DataPlane, request: Request) -> Response:
    raw = await _limited_body(request, plane)
    request_id = request_id_of(request.headers.raw, plane.new_id)
    headers = parse_headers(request.headers.raw, request_id)
    body = parse_body(raw)
    api = next((api for api, field in schemas.REQUIRED.items() if field in body.fields), Api.CHAT)
    if body.model not in plane.table.routes:
        raise BadRequestError(openai.unknown_model(body.model, plane.table.routes))
    routed, _ = plane.route(api, headers, body)
    decision = plane.scheduler.decide(routed, now=plane.clock(), explain=True)
    return JSONResponse(explain(decision))


async def _limited_body(request: Request, plane: DataPlane) -> bytes:
    settings = plane.settings
    limit = settings.max_body_bytes
    body = bytearray()
    held = 0
    try:
        async for chunk in request.stream():
            if not plane.bodies.take(len(chunk)):
                raise BadRequestError(openai.bodies_full(settings.retry_after_seconds))
            held += len(chunk)
            body += chunk
            if len(body) > limit:
                raise BadRequestError(openai.body_too_large(limit))
    except ClientDisconnect as error:
        raise BadRequestError(
            openai.invalid_request("The client left before its request was whole.", code="left")
        ) from error
    finally:
        plane.bodies.give_back(held)
    return bytes(body)


def _http_api_error(request: Request, error: HTTPException) -> ApiError:
    path = request.url.path
    # FastAPI does not know the hot paths, and they take nothing but POST.
    hot = path in schemas.HOT_PATHS and request.method != "POST"
    if error.status_code == 404 and not hot:
        message = f"There is no {request.method} {path[:200]} here; see GET /v1/models."
        return ApiError(status=404, message=message, code="not_found")
    if error.status_code in (404, 405):
        message = f"{path[:200]} does not take {request.method}."
        return ApiError(status=405, message=message, code="method_not_allowed")
    return ApiError(status=error.status_code, message=str(error.detail), code="http_error")


def _error_response(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(error.content(), status_code=error.status, headers=headers)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        document["paths"].update(schemas.HOT_PATHS)
        app.openapi_schema = document
    return app.openapi_schema
