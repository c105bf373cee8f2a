"""A whole request from a client: taken and made a relay, or refused and counted."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from pointsman_serving.gateway import openai
from pointsman_serving.gateway.body import RequestBody, goes_on, parse_body
from pointsman_serving.gateway.headers import (
    Header,
    RequestHeaders,
    parse_headers,
    request_id_of,
    routed_lines,
)
from pointsman_serving.gateway.metrics import OTHER
from pointsman_serving.gateway.openai import ApiError, BadRequestError
from pointsman_serving.gateway.plane import DataPlane
from pointsman_serving.gateway.relay import Relay
from pointsman_serving.gateway.reply import ClientReply, send_error
from pointsman_serving.routing.types import Api

log = structlog.get_logger(__name__)


def accept(
    plane: DataPlane,
    reply: ClientReply,
    api: Api,
    raw_headers: Sequence[Header],
    raw_body: bytes,
) -> Relay | None:
    """Take a whole request; None where it has been answered already."""
    started = plane.clock()
    request_id = request_id_of(raw_headers, plane.new_id)
    relay = None
    model = OTHER
    try:
        headers = parse_headers(
            raw_headers, request_id, trust_fairness=plane.settings.trust_fairness_header
        )
        body = parse_body(raw_body)
        if body.model in plane.table.routes:
            model = body.model
        relay = _relay(plane, reply, api, headers, body, started)
    except BadRequestError as error:
        refused = error.error
    except Exception:
        log.exception("request failed", request_id=request_id)
        refused = openai.internal_error()
    if relay is None:
        refuse(plane, reply, refused, request_id, model=model, api=api, started=started)
        return None
    return relay


def refuse(
    plane: DataPlane,
    reply: ClientReply,
    error: ApiError,
    request_id: str,
    *,
    model: str = OTHER,
    api: Api,
    started: float,
) -> None:
    """Answer a request that will not be routed, and count it."""
    send_error(reply, error, routed_lines(request_id, None))
    plane.metrics.series(model, "", api).ended(error.status, plane.clock() - started)


def _relay(
    plane: DataPlane,
    reply: ClientReply,
    api: Api,
    headers: RequestHeaders,
    body: RequestBody,
    started: float,
) -> Relay:
    if goes_on(body):
        raise BadRequestError(openai.reserved_argument())
    request, found = plane.route(api, headers, body)
    if found is None:
        decision = plane.decide(request, started, ())
        raise BadRequestError(plane.refusal(decision, body.model))
    policy, rule = found
    return Relay(
        plane,
        reply,
        request=request,
        headers=headers,
        body=body,
        rule=rule,
        policy=policy,
        started=started,
    )
