"""The Simulated engine: vLLM's API in front of a model of time, with no weights.

An answer is words that follow from the prompt, the model's name and the seed, so that replicas
agree at temperature 0; how long it takes is :mod:`pointsman_serving.engines.timing`'s matter.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pointsman_serving.engines.simulated_engine import EngineDeadError, SimulatedEngine
from pointsman_serving.engines.simulated_errors import ApiError, error_body
from pointsman_serving.engines.simulated_metrics import LOAD_FORMAT_HEADER, EngineMetrics
from pointsman_serving.engines.simulated_options import SimulatedOptions, parse_simulated_args
from pointsman_serving.engines.simulated_protocol import (
    ModelText,
    chat_text,
    check_model,
    known_tokens,
    plan_generation,
)
from pointsman_serving.engines.simulated_reply import Endpoint, Generation
from pointsman_serving.engines.simulated_text import LengthModel, detokenize, tokenize
from pointsman_serving.engines.timing import EngineModel

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from pointsman_serving.engines.timing import EngineProfile

__all__ = ["SimulatedOptions", "parse_simulated_args", "simulated_app", "simulated_app_of"]

_VERSION = "0.32.0+pointsman.simulated"


def simulated_app_of(options: SimulatedOptions) -> Starlette:
    """The application that parsed flags describe."""
    return simulated_app(
        options.profile,
        model_name=options.model_name,
        seed=options.seed,
        max_model_len=options.max_model_len,
        speed=options.speed,
        lengths=options.lengths,
    )


def simulated_app(
    profile: EngineProfile,
    *,
    model_name: str,
    seed: int,
    max_model_len: int,
    speed: float = 1.0,
    lengths: LengthModel | None = None,
) -> Starlette:
    """An ASGI application that serves one simulated engine. It needs no lifespan events.

    Args:
        profile: capacity and timing.
        model_name: the name that requests ask for.
        seed: engines with the same seed and name say the same.
        max_model_len: tokens of prompt and answer together.
        speed: model seconds per second.
        lengths: how long answers are that nothing cuts.

    Returns:
        The application; ``app.state.engine`` is its :class:`SimulatedEngine`.

    Raises:
        ValueError: the cache cannot hold ``max_model_len``, or the speed is not above 0.
    """
    options = SimulatedOptions(
        profile=profile,
        model_name=model_name,
        seed=seed,
        max_model_len=max_model_len,
        speed=speed,
        lengths=lengths or LengthModel(),
    )
    service = _Service(options, created=int(time.time()))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.completions, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/tokenize", service.tokenize, methods=["POST"]),
            Route("/detokenize", service.detokenize, methods=["POST"]),
            Route("/health", service.health),
            Route("/-/healthz", service.healthz),
            Route("/version", service.version),
            Route("/metrics", service.metrics),
        ],
        exception_handlers={
            ApiError: _api_error,
            EngineDeadError: _engine_dead,
            HTTPException: _http_error,
        },
    )
    app.state.engine = service.engine
    return app


class _AsciiJsonResponse(Response):
    """JSON in ASCII: what a request says may hold half a surrogate pair, which UTF-8 cannot."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


class _Service:
    """The endpoints of one engine."""

    def __init__(self, options: SimulatedOptions, *, created: int) -> None:
        model = EngineModel(options.profile)
        self._created = created
        self._metrics = EngineMetrics(model, model_name=options.model_name)
        self.engine = SimulatedEngine(model, self._metrics, speed=options.speed)
        self._text = ModelText(
            model_name=options.model_name,
            seed=options.seed,
            max_model_len=options.max_model_len,
            block_tokens=options.profile.block_tokens,
            lengths=options.lengths,
        )
        self._numbers = itertools.count()

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, Endpoint.CHAT)

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, Endpoint.COMPLETION)

    async def _generate(self, request: Request, endpoint: Endpoint) -> Response:
        body = await _json_object(request)
        if not self.engine.alive:
            raise EngineDeadError("the Simulated engine has failed: restart the replica")
        number = next(self._numbers)
        try:
            generation = plan_generation(
                body,
                endpoint,
                self._text,
                base_id=request.headers.get("x-request-id") or f"{uuid.uuid4().int % 2**64:016x}",
                engine_id=str(number),
                created=int(time.time()),
                sample=number,
            )
        except RecursionError:
            raise ApiError("The body is nested too deeply.") from None
        return _Reply(
            generation, self.engine, self._metrics, request.headers.get(LOAD_FORMAT_HEADER, "")
        )

    async def models(self, _: Request) -> Response:
        permission = {
            "id": f"modelperm-{self._text.model_name}",
            "object": "model_permission",
            "created": self._created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": False,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        card = {
            "id": self._text.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "pointsman",
            "root": self._text.model_name,
            "parent": None,
            "max_model_len": self._text.max_model_len,
            "permission": [permission],
        }
        return _AsciiJsonResponse({"object": "list", "data": [card]})

    async def tokenize(self, request: Request) -> Response:
        body = await _json_object(request)
        check_model(body, self._text.model_name)
        prompt = body.get("prompt")
        tokens = tokenize(prompt if isinstance(prompt, str) else chat_text(body))
        strings = (
            [detokenize([token]) for token in tokens] if body.get("return_token_strs") else None
        )
        return _AsciiJsonResponse(
            {
                "count": len(tokens),
                "max_model_len": self._text.max_model_len,
                "tokens": tokens,
                "token_strs": strings,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        body = await _json_object(request)
        check_model(body, self._text.model_name)
        tokens = body.get("tokens")
        if not isinstance(tokens, list):
            raise ApiError("tokens must be a list of token ids.", param="tokens")
        return _AsciiJsonResponse({"prompt": detokenize(known_tokens(tokens, param="tokens"))})

    async def health(self, _: Request) -> Response:
        return Response(status_code=200 if self.engine.alive else 503)

    async def healthz(self, _: Request) -> Response:
        if self.engine.alive:
            return PlainTextResponse("success")
        return PlainTextResponse("the engine has failed", status_code=503)

    async def version(self, _: Request) -> Response:
        return _AsciiJsonResponse({"version": _VERSION})

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(
            self._metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


class _Reply(Response):
    """Sends an answer while the engine makes it; a client that leaves ends the work."""

    def __init__(
        self,
        generation: Generation,
        engine: SimulatedEngine,
        metrics: EngineMetrics,
        load_format: str,
    ) -> None:
        self._generation = generation
        self._engine = engine
        self._metrics = metrics
        self._load_format = load_format
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = self._stream(send) if self._generation.stream else self._whole(scope, receive, send)
        await _until_disconnected(receive, work)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._generation
        cached = 0
        try:
            async with aclosing(
                self._engine.generate(generation.work, finish_reason=generation.finish_reason)
            ) as events:
                async for event in events:
                    cached = event.cached_tokens
        except EngineDeadError as failure:
            await _dead(failure)(scope, receive, send)
            return
        headers = self._metrics.load_header(self._load_format)
        reply = Response(generation.reply(cached), headers=headers, media_type="application/json")
        await reply(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        generation = self._generation
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            **self._metrics.load_header(self._load_format),
        }
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )

        async def write(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        cached = 0
        try:
            async with aclosing(
                self._engine.generate(generation.work, finish_reason=generation.finish_reason)
            ) as events:
                async for event in events:
                    cached = event.cached_tokens
                    opening = generation.opening() if event.position == 0 else b""
                    if opening:
                        await write(opening)
                    await write(generation.chunk(event.position))
            await write(generation.closing(cached), more=False)
        except EngineDeadError as failure:
            data = json.dumps(_dead_body(failure), separators=(",", ":")).encode()
            await write(b"data: " + data + b"\n\ndata: [DONE]\n\n", more=False)


async def _until_disconnected(receive: Receive, work: Coroutine[object, object, None]) -> None:
    """Run the work, but no longer than somebody listens."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(work), asyncio.create_task(disconnected())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def _json_object(request: Request) -> dict[str, object]:
    media_type = request.headers.get("content-type", "").lower().partition(";")[0].strip()
    if media_type != "application/json":
        raise ApiError("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as failure:
        raise ApiError(f"The body is no JSON: {failure}.") from None
    if not isinstance(body, dict):
        raise ApiError(f"The body must be a JSON object, not a {type(body).__name__}.")
    return body


def _dead_body(failure: EngineDeadError) -> dict[str, object]:
    return error_body(
        str(failure), status=HTTPStatus.INTERNAL_SERVER_ERROR, kind="InternalServerError"
    )


def _dead(failure: EngineDeadError) -> Response:
    return _AsciiJsonResponse(_dead_body(failure), status_code=HTTPStatus.INTERNAL_SERVER_ERROR)


def _api_error(_: Request, failure: Exception) -> Response:
    if not isinstance(failure, ApiError):
        raise failure
    return _AsciiJsonResponse(failure.body, status_code=failure.status)


def _engine_dead(_: Request, failure: Exception) -> Response:
    if not isinstance(failure, EngineDeadError):
        raise failure
    return _dead(failure)


def _http_error(_: Request, failure: Exception) -> Response:
    if not isinstance(failure, HTTPException):
        raise failure
    status = HTTPStatus(failure.status_code)
    body = error_body(failure.detail, status=status, kind=status.phrase)
    return _AsciiJsonResponse(body, status_code=status, headers=failure.headers)
