"""What one gateway is to run: its route table as ConfigMaps, its keys as one Secret. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_jsonable_python

from pointsman_api.compile import (
    CompiledRoutes,
    NamespaceLabels,
    RouteProblem,
    compile_route_table,
)
from pointsman_api.conditions import Reason
from pointsman_api.kept_routes import KeptRoutes, kept_routes
from pointsman_api.labels import (
    CONFIG_HASH_ANNOTATION,
    CONFIG_LABEL,
    CREDENTIALS_CONFIG,
    GATEWAY_LABEL,
    REPLICA_TOKEN_KEY,
    access_secret_name,
    credential_key,
    credentials_name,
    token_key,
)
from pointsman_api.meta import DEFAULT_NAMESPACE
from pointsman_api.modelpool import ModelPool
from pointsman_api.route_config import RouteConfigError, read_readable, route_config_maps
from pointsman_api.route_table import POOL_ROUTE, RouteTable
from pointsman_api.routepolicy import RoutePolicy
from pointsman_kube.kinds import CONFIG_MAP, Object, Ref
from pointsman_operator.drift import needs_apply
from pointsman_operator.objects import (
    Owner,
    annotation_of,
    digest,
    gateway_labels,
    is_going,
    name_of,
    owned,
    with_hash,
)
from pointsman_operator.observed import Document

LONGEST_CREDENTIAL = 8192
"""Base64 characters of an API key. All keys of a gateway lie in one Secret of 1 MiB at most, and a
long one must not keep those of others out."""
LONGEST_SECRET_KEY = 253
REMEMBERED_TABLES = 64

SecretData = Mapping[tuple[str, str], Mapping[str, str] | None]
"""The data of Secrets (base64 text by key), by namespace and name; None: there is no such Secret.
One that is absent was not looked up yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyMemory:
    """Which of the last route tables had which policies, as they were then."""

    tables: tuple[tuple[str, Mapping[str, str]], ...] = ()
    """The hash of a table, and the digest of each policy's part of it; the newest last."""

    def parts(self, config_hash: str) -> Mapping[str, str]:
        """The policies' parts of a table; empty for one that is not remembered."""
        return next((parts for known, parts in reversed(self.tables) if known == config_hash), {})

    def part(self, config_hash: str, policy: str) -> str | None:
        """A policy's part of a table, by its key; None where the table is not remembered."""
        known = any(config_hash == other for other, _ in self.tables)
        return self.parts(config_hash).get(policy, "") if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """Keys of objects that are there, and that this operator could never read."""

    pools: frozenset[str] = frozenset()
    policies: frozenset[str] = frozenset()


NOTHING_UNREADABLE = Unreadable()


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeTable:
    """A gateway's table in every form that is needed of it."""

    made_from: tuple[object, ...]
    """Tells tables apart without making them: the versions of what they are made from."""
    compiled: CompiledRoutes
    config_maps: tuple[Object, ...]
    config_hash: str
    parts: Mapping[str, str]
    """Of the policies, see :func:`policy_parts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan:
    """What to write for one gateway. The Secret comes before the table that needs it."""

    gateway: str
    apply: tuple[Object, ...] = ()
    """Apply these one after the other."""
    delete: tuple[Ref, ...] = ()
    """Then delete these."""
    config_hash: str = ""
    """Of the whole table; what a gateway reports when it runs it."""
    compiled: CompiledRoutes = field(default_factory=lambda: CompiledRoutes(table=RouteTable()))
    memory: PolicyMemory = field(default_factory=PolicyMemory)
    """For the next round."""
    made: MadeTable | None = None
    """For the next round, which needs the same table as long as only keys come and go."""


def plan_gateway(
    gateway: str,
    pools: Sequence[ModelPool],
    policies: Sequence[RoutePolicy],
    *,
    namespace: str,
    namespace_labels: NamespaceLabels,
    secrets: SecretData,
    config_maps: Iterable[Document],
    credentials: Document | None,
    memory: PolicyMemory,
    owner: Owner | None = None,
    made: MadeTable | None = None,
    unreadable: Unreadable = NOTHING_UNREADABLE,
) -> GatewayPlan:
    """The route table and the keys of one gateway.

    A policy or pool with a problem loses only the part that has it; see
    :func:`pointsman_api.compile.compile_route_table`.

    Args:
        pools: every ModelPool that can be read, of all namespaces.
        policies: every RoutePolicy that can be read.
        namespace: the operator's and the gateways'.
        secrets: those that the pools name, and their ``NAME-access``.
        config_maps: the gateway's route tables as they are.
        credentials: the gateway's Secret as it is.
        owner: of all that is written.
        made: the table of the last round, written or not.
        unreadable: what is there beside those: what its table says of them stays.

    Raises:
        RouteConfigError: what is to stay of the unreadable is not known: nothing may be written.
    """
    config_maps = tuple(config_maps)
    kept = _kept(config_maps, unreadable, made)
    made_from = (*_versions(pools, policies, namespace_labels), kept)
    if made is None or made.made_from != made_from:
        routes = compile_route_table(
            pools, policies, gateway=gateway, namespace_labels=namespace_labels, kept=kept
        )
        made = _made(gateway, namespace, owner, routes, made_from)
    compiled, config_hash = made.compiled, made.config_hash
    known = (credentials or {}).get("data") or {}
    by_key = {pool.key: pool for pool in pools}
    used = [by_key[key] for key in compiled.table.pools if key in by_key]
    data, problems = _credentials(used, secrets, known)
    data |= _kept_credentials(kept, known)
    wanted = [with_hash(owned(_secret(gateway, namespace, data), owner)), *made.config_maps]
    live = {("ConfigMap", name_of(item)): item for item in config_maps if not is_going(item)}
    names = {name_of(item) for item in wanted}
    surplus = sorted(name for _, name in live if name not in names)
    if credentials is not None:
        live["Secret", name_of(credentials)] = credentials
    return GatewayPlan(
        gateway=gateway,
        apply=tuple(
            item for item in wanted if needs_apply(live.get((item["kind"], name_of(item))), item)
        ),
        delete=tuple(Ref(kind=CONFIG_MAP, namespace=namespace, name=name) for name in surplus),
        config_hash=config_hash,
        compiled=CompiledRoutes(table=compiled.table, problems=(*compiled.problems, *problems)),
        memory=_remembered(memory, config_hash, made.parts),
        made=made,
    )


def _kept(
    config_maps: Sequence[Document], unreadable: Unreadable, made: MadeTable | None
) -> KeptRoutes:
    if unreadable == NOTHING_UNREADABLE:
        return KeptRoutes()
    try:
        table = read_readable(config_maps)
    except RouteConfigError:
        if made is not None:
            # Somebody deleted or changed a part of it, or not every part could be written.
            table = made.compiled.table
        elif config_maps:
            raise
        else:
            # A new gateway: one that cannot be read must not keep it from its first table.
            table = RouteTable()
    return kept_routes(table, pools=unreadable.pools, policies=unreadable.policies)


def _versions(
    pools: Iterable[ModelPool], policies: Iterable[RoutePolicy], labels: NamespaceLabels
) -> tuple[object, ...]:
    """All that a table depends on: of an object its spec, which its generation tells."""
    items: list[ModelPool | RoutePolicy] = [*pools, *policies]
    objects = frozenset(
        (item.kind, item.key, item.metadata.uid, item.metadata.generation) for item in items
    )
    return objects, labels


def _made(
    gateway: str,
    namespace: str,
    owner: Owner | None,
    compiled: CompiledRoutes,
    made_from: tuple[object, ...],
) -> MadeTable:
    config_maps = route_config_maps(compiled.table, gateway=gateway, namespace=namespace)
    return MadeTable(
        made_from=made_from,
        compiled=compiled,
        config_maps=tuple(
            with_hash(owned(_labelled(item, gateway), owner)) for item in config_maps
        ),
        config_hash=annotation_of(config_maps[0], CONFIG_HASH_ANNOTATION),
        parts=policy_parts(compiled.table),
    )


def policy_parts(table: RouteTable) -> dict[str, str]:
    """A digest of each policy's part of a table: its routes, and the pools that they name.

    A change of another policy, or of a pool that this one does not use, does not change it.
    """
    routes: dict[str, dict[str, Any]] = {}
    pools: dict[str, set[str]] = {}
    for name, route in table.routes.items():
        if route.policy.startswith(POOL_ROUTE):
            # A pool that answers to its own name: there are as many as pools, and nobody asks.
            continue
        routes.setdefault(route.policy, {})[name] = to_jsonable_python(route)
        pools.setdefault(route.policy, set()).update(
            target.pool for rule in route.rules for target in rule.targets
        )
    return {
        policy: digest(
            {
                "routes": routes[policy],
                "pools": {key: to_jsonable_python(table.pools[key]) for key in pools[policy]},
            }
        )[:16]
        for policy in routes
    }


def _remembered(memory: PolicyMemory, config_hash: str, parts: Mapping[str, str]) -> PolicyMemory:
    if memory.tables and memory.tables[-1][0] == config_hash:
        return memory
    others = tuple(item for item in memory.tables if item[0] != config_hash)
    return PolicyMemory(tables=(*others, (config_hash, parts))[-REMEMBERED_TABLES:])


def _credentials(
    pools: Iterable[ModelPool], secrets: SecretData, known: Mapping[str, str]
) -> tuple[dict[str, str], list[RouteProblem]]:
    """The keys that a gateway sends to providers and replicas; base64, as Secrets hold them."""
    data: dict[str, str] = {}
    problems: list[RouteProblem] = []

    def take(target: str, namespace: str, name: str, key: str) -> bool:
        if (namespace, name) in secrets:
            value = (secrets[namespace, name] or {}).get(key)
        else:
            value = known.get(target)
        if value is not None and len(value) <= LONGEST_CREDENTIAL:
            data[target] = value
        return value is None or len(value) <= LONGEST_CREDENTIAL

    for pool in pools:
        namespace, name = pool.metadata.namespace, pool.metadata.name
        if pool.spec.backend.ray_serve is not None:
            take(token_key(namespace, name), namespace, access_secret_name(name), REPLICA_TOKEN_KEY)
        external = pool.spec.backend.external
        if external is None or external.credential_secret_ref is None:
            continue
        reference = external.credential_secret_ref
        target = credential_key(namespace, reference.name, reference.key)
        if len(target) > LONGEST_SECRET_KEY:
            message = (
                f"the names of the namespace, the Secret and its key are {len(target)} characters "
                f"together, and {LONGEST_SECRET_KEY} are allowed: give the Secret a shorter name"
            )
            problems.append(_bad_credential(pool, "name", reference.name, message))
        elif not take(target, namespace, reference.name, reference.key):
            message = (
                f"the key {reference.key} of the Secret {reference.name} is longer than "
                f"{LONGEST_CREDENTIAL * 3 // 4} bytes, which is no API key: name the key that "
                "holds one"
            )
            problems.append(_bad_credential(pool, "key", reference.key, message))
    return data, problems


def _kept_credentials(kept: KeptRoutes, known: Mapping[str, str]) -> dict[str, str]:
    """The keys of pools that cannot be read: those that there are."""
    targets: set[str] = set()
    for key, entry in kept.pools.items():
        namespace, _, name = key.rpartition("/")
        targets.add(token_key(namespace or DEFAULT_NAMESPACE, name))
        if (reference := entry.credential) is not None:
            targets.add(
                credential_key(
                    reference.secret_namespace, reference.secret_name, reference.secret_key
                )
            )
    return {target: known[target] for target in targets if target in known}


def _bad_credential(pool: ModelPool, field: str, value: str, message: str) -> RouteProblem:
    return RouteProblem(
        kind=pool.kind,
        key=pool.key,
        field=("spec", "backend", "external", "credentialSecretRef", field),
        value=value,
        reason=Reason.INVALID,
        message=message,
    )


def _secret(gateway: str, namespace: str, data: Mapping[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": credentials_name(gateway),
            "namespace": namespace,
            "labels": {
                **gateway_labels(gateway, "credentials"),
                GATEWAY_LABEL: gateway,
                CONFIG_LABEL: CREDENTIALS_CONFIG,
            },
        },
        "data": dict(sorted(data.items())),
    }


def _labelled(config_map: Object, gateway: str) -> Object:
    metadata = config_map["metadata"]
    labels = {**gateway_labels(gateway, "routes"), **metadata["labels"]}
    return {**config_map, "metadata": {**metadata, "labels": labels}}
