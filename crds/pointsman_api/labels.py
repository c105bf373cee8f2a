"""Labels, annotations and object names that the operator, the gateways and the chart agree on."""

from __future__ import annotations

from pointsman_api.meta import GROUP

FIELD_MANAGER = "pointsman-operator"
"""Who owns the fields that the operator applies."""

POOL_LABEL = f"{GROUP}/pool"
POOL_NAMESPACE_LABEL = f"{GROUP}/pool-namespace"
GATEWAY_LABEL = f"{GROUP}/gateway"
"""On a gateway's pods, its ConfigMaps and its Secret: the gateway's name."""
CONFIG_LABEL = f"{GROUP}/config"
"""What a ConfigMap or Secret of a gateway holds: ``routes`` or ``credentials``."""

CONFIG_HASH_ANNOTATION = f"{GROUP}/config-hash"
SHARD_ANNOTATION = f"{GROUP}/shard"
SHARDS_ANNOTATION = f"{GROUP}/shards"
ROUTE_PREFIX_ANNOTATION = f"{GROUP}/route-prefix"
SPEC_HASH_ANNOTATION = f"{GROUP}/spec-hash"
"""On what the operator applies: the hash of what it applied last."""
REVISION_ANNOTATION = f"{GROUP}/revision"
RESTARTED_AT_ANNOTATION = f"{GROUP}/restarted-at"
"""On a ModelPool: a new value asks for a roll-out of all replicas, and for a new rendering."""

ROUTES_CONFIG = "routes"
CREDENTIALS_CONFIG = "credentials"


def routes_name(gateway: str, shard: int) -> str:
    """The ConfigMap that holds one part of a gateway's route table."""
    return f"pointsman-{gateway}-routes-{shard}"


def credentials_name(gateway: str) -> str:
    """The Secret with the keys that a gateway sends to replicas and providers."""
    return f"pointsman-{gateway}-credentials"


def credential_key(namespace: str, secret: str, key: str) -> str:
    """The key in a gateway's Secret that holds a provider's API key.

    No name of a namespace or Secret has an underscore, so no two references share a key.
    """
    return f"credential.{namespace}_{secret}_{key}"


def token_key(namespace: str, pool: str) -> str:
    """The key in a gateway's Secret that holds the token of a pool's replicas."""
    return f"token.{namespace}.{pool}"


def access_secret_name(pool: str) -> str:
    """The Secret of a pool with Ray's token (``auth_token``) and the replicas' own
    (``replica_token``)."""
    return f"{pool}-access"


AUTH_TOKEN_KEY = "auth_token"
REPLICA_TOKEN_KEY = "replica_token"
REPLICA_TOKEN_VARIABLE = "POINTSMAN_REPLICA_TOKEN"
REPLICA_TOKEN_HEADER = "x-pointsman-token"
