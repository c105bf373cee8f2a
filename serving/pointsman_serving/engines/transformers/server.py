"""The OpenAI endpoints of a Transformers replica, as an ASGI application."""

from __future__ import annotations

import json
import logging
import time
import uuid
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
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
from pointsman_serving.engines.transformers.engine import GenerationFailedError
from pointsman_serving.engines.transformers.reply import Reply
from pointsman_serving.engines.transformers.requests import (
    bad_request,
    check_tokens_sent,
    read_request,
    room_for_answer,
)
from pointsman_serving.engines.transformers.text import Detokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from pointsman_serving.engines.transformers.engine import BatchingEngine
    from pointsman_serving.engines.transformers.metrics import EngineMetrics
    from pointsman_serving.engines.transformers.requests import GenerationRequest

_log = logging.getLogger(__name__)


class ReplicaService:
    """The endpoints of one engine."""

    def __init__(
        self,
        engine: BatchingEngine,
        metrics: EngineMetrics,
        tokenizer: Any,
        *,
        model_name: str,
        max_model_len: int,
        created: int,
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self._tokenizer = tokenizer
        self._model_name = model_name
        self._max_model_len = max_model_len
        self._created = created

    def application(self) -> Starlette:
        """The routes and the error forms."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/models", self._models),
                *status_routes(self.engine, self.metrics),
            ],
            exception_handlers={
                ApiError: _api_error,
                HTTPException: _http_error,
                Exception: _unexpected,
            },
        )

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, Endpoint.CHAT)

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, Endpoint.COMPLETION)

    async def _answer(self, request: Request, endpoint: Endpoint) -> Response:
        arrived = time.monotonic()
        wanted = read_request(await _json_object(request), endpoint, model_name=self._model_name)
        prompt = self._prompt(wanted)
        room = room_for_answer(len(prompt), wanted.max_tokens, max_model_len=self._max_model_len)
        check_tokens_sent(wanted.sent, room=room, vocabulary=self.engine.vocabulary)
        # The client's own id may come twice; the engine's must not.
        identity = f"{endpoint.id_prefix}-{uuid.uuid4().hex}"
        return _Generation(
            self,
            wanted,
            prompt,
            room,
            arrived=arrived,
            reply=Reply(
                endpoint=endpoint,
                identity=identity,
                created=int(time.time()),
                model_name=self._model_name,
                prompt=tuple(prompt),
                return_token_ids=wanted.return_token_ids,
            ),
            load_format=request.headers.get(REQUEST_HEADER.decode(), ""),
            request_id=request.headers.get("x-request-id", ""),
        )

    def _prompt(self, wanted: GenerationRequest) -> list[int]:
        if wanted.messages is not None:
            try:
                found = self._tokenizer.apply_chat_template(
                    list(wanted.messages),
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    **wanted.template_arguments,
                )
            except Exception as error:  # a template is a program of the model's author
                message = f"the model's chat template refused the messages: {error}"
                raise bad_request(message, "messages") from error
            return list(found["input_ids"])
        if wanted.token_ids is not None:
            limit = self.engine.vocabulary
            beyond = [token for token in wanted.token_ids if token >= limit]
            if beyond:
                message = f"prompt has the token id {beyond[0]}; allowed are 0 to {limit - 1}"
                raise bad_request(message, "prompt")
            return list(wanted.token_ids)
        return list(self._tokenizer(wanted.text)["input_ids"])

    def detokenizer(self, stops: tuple[str, ...]) -> Detokenizer:
        """Text of one answer."""
        return Detokenizer(self._tokenizer.backend_tokenizer, stops)

    async def _models(self, _: Request) -> Response:
        card = model_card(
            self._model_name, created=self._created, max_model_len=self._max_model_len
        )
        return JSONResponse({"object": "list", "data": [card]})


class _Piece(NamedTuple):
    """A part of an answer."""

    text: str
    token_ids: tuple[int, ...]


class _Generation(Response):
    """Sends an answer while it is made; a client that leaves ends the work."""

    def __init__(
        self,
        service: ReplicaService,
        wanted: GenerationRequest,
        prompt: list[int],
        room: int,
        *,
        arrived: float,
        reply: Reply,
        load_format: str,
        request_id: str,
    ) -> None:
        self._service = service
        self._wanted = wanted
        self._prompt = prompt
        self._room = room
        self._arrived = arrived
        self._reply = reply
        self._load_format = load_format
        self._request_id = request_id
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = self._stream if self._wanted.stream else self._whole
        await until_disconnected(receive, work(scope, receive, send))

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        text, token_ids = "", list[int]()
        try:
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    text += piece.text
                    token_ids += piece.token_ids
        except (EngineFailedError, GenerationFailedError) as failure:
            status, body = _failure(failure)
            await JSONResponse(body, status_code=status)(scope, receive, send)
            return
        document = self._reply.whole(text, token_ids)
        await JSONResponse(document, headers=self._reply_headers())(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def write(data: bytes, *, more: bool = True) -> None:
            nonlocal started
            if not started:
                started = True
                headers = {"cache-control": "no-cache", **self._reply_headers()}
                await send(stream_start(headers))
                data = self._reply.opening() + data
            await send(stream_part(data, more=more))

        try:
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    # Nothing is sent before the first token, so that a failure until then is an
                    # HTTP error, which can be retried elsewhere.
                    text, tokens = piece
                    await write(self._reply.chunk(text, tokens, first=not started))
            tail = self._reply.last_chunk()
            if self._wanted.include_usage:
                tail += self._reply.usage_chunk()
            await write(tail + DONE, more=False)
        except (EngineFailedError, GenerationFailedError) as failure:
            status, body = _failure(failure)
            if not started:
                await JSONResponse(body, status_code=status)(scope, receive, send)
                return
            await write(server_sent_event(json.dumps(body).encode()) + DONE, more=False)

    def _replay(self, text: Detokenizer) -> _Piece:
        """Take over the tokens that another replica has sent; they may be the whole answer."""
        wanted, reply = self._wanted, self._reply
        shown = ""
        for token in wanted.sent:
            shown += text.feed((token,))
            reply.completion_tokens += 1
            if text.stopped:
                break
        if text.stopped or self._service.engine.ends(wanted.sent, ignore_eos=wanted.ignore_eos):
            reply.finish_reason = "stop"
        elif len(wanted.sent) >= self._room:
            reply.finish_reason = "length"
        if reply.finish_reason is not None:
            shown += text.flush()
        return _Piece(shown, wanted.sent[: reply.completion_tokens])

    async def _pieces(self) -> AsyncGenerator[_Piece]:
        """The pieces of text; one, maybe empty, for each iteration of the engine.

        What another replica has sent is a piece before the first, and comes when that does.
        """
        engine, metrics, reply = self._service.engine, self._service.metrics, self._reply
        text = self._service.detokenizer(self._wanted.stop)
        before = self._arrived
        reason = "abort"
        sent = self._wanted.sent
        try:
            replayed = self._replay(text)
            if reply.finish_reason is not None:
                reason = reply.finish_reason
                yield replayed
                return
            first = True
            steps = engine.generate(
                reply.identity,
                [*self._prompt, *sent],
                max_tokens=self._room - len(sent),
                sampling=self._wanted.sampling,
                ignore_eos=self._wanted.ignore_eos,
                cache_salt=self._wanted.cache_salt,
            )
            async with aclosing(steps):
                async for step in steps:
                    now = time.monotonic()
                    if first:
                        # To the engine the tokens sent are prompt; to the client they are not.
                        reply.cached_tokens = min(step.cached_tokens, len(self._prompt))
                        metrics.time_to_first_token.observe(now - before)
                        metrics.prompt_tokens.inc(len(self._prompt) + len(sent))
                        metrics.prefix_queries.inc(len(self._prompt) + len(sent))
                        metrics.prefix_hits.inc(step.cached_tokens)
                        if sent:
                            yield replayed
                    else:
                        metrics.inter_token_latency.observe(now - before)
                    first = False
                    before = now
                    reply.completion_tokens += len(step.token_ids)
                    metrics.generation_tokens.inc(len(step.token_ids))
                    shown = text.feed(step.token_ids)
                    if text.stopped:
                        reason = reply.finish_reason = "stop"
                    elif step.finish_reason is not None:
                        reason = reply.finish_reason = step.finish_reason
                        shown += text.flush()
                    yield _Piece(shown, step.token_ids)
                    if text.stopped:
                        return
        finally:
            metrics.ended(reason)
            metrics.e2e_latency.observe(time.monotonic() - self._arrived)

    def _reply_headers(self) -> dict[str, str]:
        identity = {"x-request-id": self._request_id} if self._request_id else {}
        return {**identity, **self._service.metrics.load_header(self._load_format)}


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        message = f"the body is not JSON: {error}"
        raise bad_request(message) from None
    if not isinstance(body, dict):
        message = f"the body is a JSON {type(body).__name__}; allowed is an object"
        raise bad_request(message)
    return body


def _failure(failure: Exception) -> tuple[int, dict[str, object]]:
    if isinstance(failure, EngineFailedError):
        status, kind = HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError"
    else:
        status, kind = HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError"
    return status, error_body(str(failure), status=status, kind=kind)


async def _api_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return JSONResponse(error.body, status_code=error.status)


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    kind = "NotFoundError" if error.status_code == 404 else "BadRequestError"
    body = error_body(error.detail, status=error.status_code, kind=kind)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _unexpected(_: Request, error: Exception) -> Response:
    _log.error("a request failed", exc_info=error)
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    message = f"{type(error).__name__}: {error}"
    body = error_body(message, status=status, kind="InternalServerError")
    return JSONResponse(body, status_code=status)
