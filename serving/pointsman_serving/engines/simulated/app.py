"""The Simulated engine: vLLM's API in front of a model of time, with no weights.

An answer is words that follow from the prompt, the model's name and the seed, so that replicas
agree at temperature 0; how long it takes is :mod:`pointsman_serving.engines.timing`'s matter.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from pointsman_serving.engines.disconnect import until_disconnected
from pointsman_serving.engines.endpoints import model_card, status_routes
from pointsman_serving.engines.engine import EngineFailedError
from pointsman_serving.engines.load_header import REQUEST_HEADER
from pointsman_serving.engines.openai_errors import ApiError, error_body
from pointsman_serving.engines.openai_reply import (
    DONE,
    Endpoint,
    server_sent_event,
    stream_part,
    stream_start,
)
from pointsman_serving.engines.simulated.engine import SimulatedEngine
from pointsman_serving.engines.simulated.metrics import EngineMetrics
from pointsman_serving.engines.simulated.options import SimulatedOptions
from pointsman_serving.engines.simulated.protocol import (
    ModelText,
    chat_text,
    check_model,
    known_tokens,
    plan_generation,
)
from pointsman_serving.engines.simulated.text import LengthModel, detokenize, tokenize
from pointsman_serving.engines.timing import EngineModel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from pointsman_serving.engines.simulated.engine import TokenEvent
    from pointsman_serving.engines.simulated.reply import Generation
    from pointsman_serving.engines.timing import EngineProfile

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
            Route("/version", service.version),
            *status_routes(service.engine, service.metrics),
        ],
        exception_handlers={
            ApiError: _api_error,
            EngineFailedError: _engine_dead,
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
        self.metrics = EngineMetrics(model, model_name=options.model_name)
        self.engine = SimulatedEngine(model, self.metrics, speed=options.speed)
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
            raise EngineFailedError("the Simulated engine has failed: restart the replica")
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
            generation,
            self.engine,
            self.metrics,
            request.headers.get(REQUEST_HEADER.decode(), ""),
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
        card = model_card(
            self._text.model_name, created=self._created, max_model_len=self._text.max_model_len
        )
        card["permission"] = [permission]
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

    async def version(self, _: Request) -> Response:
        return _AsciiJsonResponse({"version": _VERSION})


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
        await until_disconnected(receive, work)

    async def _events(self) -> AsyncGenerator[TokenEvent, None]:
        """The tokens that the engine makes; none where all were sent before."""
        work = self._generation.work
        if work is None:
            return
        made = self._engine.generate(work, finish_reason=self._generation.finish_reason)
        async with aclosing(made) as events:
            async for event in events:
                yield event

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._generation
        cached = 0
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    cached = event.cached_tokens
        except EngineFailedError as failure:
            await _dead(failure)(scope, receive, send)
            return
        headers = self._metrics.load_header(self._load_format)
        reply = Response(generation.reply(cached), headers=headers, media_type="application/json")
        await reply(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        generation = self._generation
        await send(stream_start(self._metrics.load_header(self._load_format)))
        cached = 0
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    cached = event.cached_tokens
                    beginning = generation.beginning() if event.position == 0 else b""
                    if beginning:
                        await send(stream_part(beginning))
                    await send(stream_part(generation.chunk(generation.sent + event.position)))
            ending = generation.closing(cached)
            if generation.work is None:
                ending = generation.beginning() + ending
            await send(stream_part(ending, more=False))
        except EngineFailedError as failure:
            data = json.dumps(_dead_body(failure), separators=(",", ":")).encode()
            await send(stream_part(server_sent_event(data) + DONE, more=False))


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


def _dead_body(failure: EngineFailedError) -> dict[str, object]:
    return error_body(
        str(failure), status=HTTPStatus.INTERNAL_SERVER_ERROR, kind="InternalServerError"
    )


def _dead(failure: EngineFailedError) -> Response:
    return _AsciiJsonResponse(_dead_body(failure), status_code=HTTPStatus.INTERNAL_SERVER_ERROR)


def _api_error(_: Request, failure: Exception) -> Response:
    if not isinstance(failure, ApiError):
        raise failure
    return _AsciiJsonResponse(failure.body, status_code=failure.status)


def _engine_dead(_: Request, failure: Exception) -> Response:
    if not isinstance(failure, EngineFailedError):
        raise failure
    return _dead(failure)


def _http_error(_: Request, failure: Exception) -> Response:
    if not isinstance(failure, HTTPException):
        raise failure
    status = HTTPStatus(failure.status_code)
    body = error_body(failure.detail, status=status, kind=status.phrase)
    return _AsciiJsonResponse(body, status_code=status, headers=failure.headers)
