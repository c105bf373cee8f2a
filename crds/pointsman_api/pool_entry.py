"""From a ModelPool to what the gateways see of it. Pure."""

from __future__ import annotations

from pointsman_api.meta import object_key
from pointsman_api.modelpool import ModelPool, PoolPricing
from pointsman_api.route_table import CredentialReference, ExternalEndpoint, PoolEntry, Pricing

_TOKENS_PER_PRICE = 1_000_000


def pool_entry(pool: ModelPool, secrets_folder: str) -> PoolEntry:
    """The pool's entry in the route table.

    Args:
        secrets_folder: where Secrets lie as files; empty: credentials stay references.
    """
    spec = pool.spec
    ray_serve, external = spec.backend.ray_serve, spec.backend.external
    return PoolEntry(
        name=pool.key,
        served_model_name=spec.served_model_name,
        backend=spec.backend.type,
        engine="" if ray_serve is None else ray_serve.engine.type.value,
        prefix_index=spec.backend.prefix_index,
        context_tokens=spec.context_tokens,
        sequence_slots=_sequence_slots(pool),
        pricing=_pricing(spec.pricing),
        quality={item.task: item.score.number for item in spec.quality},
        external_endpoints=tuple(
            ExternalEndpoint(
                url=address.url.rstrip("/"),
                model_name=address.model_name or spec.served_model_name,
            )
            for address in (() if external is None else external.endpoints)
        ),
        credential=_credential(pool, secrets_folder),
    )


def _sequence_slots(pool: ModelPool) -> int:
    backend = pool.spec.backend
    if backend.external is not None:
        return backend.external.max_ongoing_requests
    if backend.ray_serve is not None:
        return backend.ray_serve.engine.max_sequences
    if backend.pod_selector is not None:
        return backend.pod_selector.max_sequences
    raise ValueError(f"the ModelPool {pool.key} has no member of backend: set the one of its type")


def _pricing(pricing: PoolPricing | None) -> Pricing:
    if pricing is None:
        return Pricing()
    prices = pricing.per_million_tokens
    cached = prices.input if prices.cached_input is None else prices.cached_input
    return Pricing(
        input_dollars=prices.input.number / _TOKENS_PER_PRICE,
        cached_input_dollars=cached.number / _TOKENS_PER_PRICE,
        output_dollars=prices.output.number / _TOKENS_PER_PRICE,
    )


def _credential(pool: ModelPool, secrets_folder: str) -> CredentialReference | None:
    external = pool.spec.backend.external
    if external is None or external.credential_secret_ref is None:
        return None
    reference = external.credential_secret_ref
    secret = object_key(pool.metadata.namespace, reference.name)
    return CredentialReference(
        secret_namespace=pool.metadata.namespace,
        secret_name=reference.name,
        secret_key=reference.key,
        path=f"{secrets_folder.rstrip('/')}/{secret}/{reference.key}" if secrets_folder else "",
    )
