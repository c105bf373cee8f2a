"""Which requests may profit from whose cached prefixes, in the estimate and in the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pointsman_api.route_table import CacheIsolation, PoolEntry, Rule
from pointsman_serving.gateway.body import RequestBody
from pointsman_serving.gateway.headers import RequestHeaders
from pointsman_serving.gateway.openai import BadRequestError, nested_too_deeply
from pointsman_serving.routing.features import features_of
from pointsman_serving.routing.prefix import prompt_of
from pointsman_serving.routing.types import Api, RouteRequest

# Those that know cache_salt; others would refuse the member.
_SALTED_ENGINES = frozenset({"VLLM", "Transformers", "Simulated"})


def isolation_of(rules: Sequence[Rule]) -> CacheIsolation | None:
    """What all rules of a route agree on; None where they differ."""
    stated = {rule.cache_isolation for rule in rules}
    return stated.pop() if len(stated) == 1 else None


def route_request(
    api: Api, headers: RequestHeaders, body: RequestBody, now: float, *, shared: bool
) -> RouteRequest:
    """A request in the scheduler's words.

    Args:
        now: when it came.
        shared: tenants profit from each other's prefixes.

    Raises:
        BadRequestError: the prompt is nested too deeply.
    """
    tenant = "" if shared else headers.tenant
    if body.cache_salt:
        # The engine keeps differently salted prompts apart, so the estimate must as well.
        tenant = f"{tenant}\0{body.cache_salt}"
    try:
        prompt = prompt_of(body.fields, api, model=body.model, tenant=tenant)
        features = features_of(body.fields)
    except RecursionError as error:
        raise BadRequestError(nested_too_deeply()) from error
    return RouteRequest(
        request_id=headers.request_id,
        model=body.model,
        api=api,
        prompt=prompt,
        headers=headers.headers,
        max_output_tokens=body.max_output_tokens(),
        conversation=headers.conversation,
        tenant=tenant,
        fairness_id=headers.fairness_id,
        task=headers.task,
        ttft_slo_seconds=headers.ttft_slo_seconds,
        stream=body.streams,
        features=features,
        arrived_at=now,
    )


def engine_salt(tenant: str) -> str:
    """The salt that the engine gets with a request of that tenant, as ``route_request`` names it.

    It is :func:`cache_salt`'s, or the client's own where that adds nothing.
    """
    name, separated, client_salt = tenant.partition("\0")
    if not separated:
        return name
    return _both_salts(name, client_salt) if name else client_salt


def cache_salt(pool: PoolEntry | None, api: Api, tenant: str, client_salt: str, rule: Rule) -> str:
    """The salt that keeps a tenant's blocks apart inside the engine; empty: nothing to add."""
    if (
        pool is None
        or pool.engine not in _SALTED_ENGINES
        or not tenant
        or api is Api.EMBEDDINGS
        or rule.cache_isolation is not CacheIsolation.TENANT
    ):
        return ""
    if not client_salt:
        return tenant
    return _both_salts(tenant, client_salt)


def _both_salts(tenant: str, client_salt: str) -> str:
    return hashlib.blake2b(f"{tenant}\0{client_salt}".encode(), digest_size=16).hexdigest()
