"""What one gateway is to run: its route table as ConfigMaps, its keys as one Secret. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_jsonable_python

from pointsman_api.compile import CompiledRoutes, NamespaceLabels, RouteProblem, compile_route_table
from pointsman_api.conditions import Reason
from pointsman_api.labels import (
    CONFIG_LABEL,
    CREDENTIALS_CONFIG,
    GATEWAY_LABEL,
    REPLICA_TOKEN_KEY,
    access_secret_name,
    credential_key,
    credentials_name,
    token_key,
)
from pointsman_api.modelpool import ModelPool
from pointsman_api.route_config import route_config_maps
from pointsman_api.route_table import RouteTable
from pointsman_api.routepolicy import RoutePolicy
from pointsman_kube.kinds import CONFIG_MAP, Object, Ref
from pointsman_operator.drift import needs_apply
from pointsman_operator.objects import digest, gateway_labels, is_going, name_of, with_hash
from pointsman_operator.observed import Document
from pointsman_operator.ownership import Owner, owned

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
    """
    compiled = compile_route_table(
        pools, policies, gateway=gateway, namespace_labels=namespace_labels
    )
    by_key = {pool.key: pool for pool in pools}
    used = [by_key[key] for key in compiled.table.pools]
    data, problems = _credentials(used, secrets, (credentials or {}).get("data") or {})
    config_hash = compiled.table.digest()
    wanted = [
        with_hash(owned(_secret(gateway, namespace, data), owner)),
        *(
            with_hash(owned(_labelled(item, gateway), owner))
            for item in route_config_maps(compiled.table, gateway=gateway, namespace=namespace)
        ),
    ]
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
        memory=_remembered(memory, config_hash, policy_parts(compiled.table)),
    )


def policy_parts(table: RouteTable) -> dict[str, str]:
    """A digest of each policy's part of a table: its routes, and the pools that they name.

    A change of another policy, or of a pool that this one does not use, does not change it.
    """
    routes: dict[str, dict[str, Any]] = {}
    pools: dict[str, set[str]] = {}
    for name, route in table.routes.items():
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

    def take(target: str, namespace: str, name: str, key: str) -> None:
        if (namespace, name) in secrets:
            value = (secrets[namespace, name] or {}).get(key)
        else:
            value = known.get(target)
        if value is not None:
            data[target] = value

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
            problems.append(_too_long(pool, reference.name, target))
        else:
            take(target, namespace, reference.name, reference.key)
    return data, problems


def _too_long(pool: ModelPool, secret: str, target: str) -> RouteProblem:
    return RouteProblem(
        kind=pool.kind,
        key=pool.key,
        field=("spec", "backend", "external", "credentialSecretRef", "name"),
        value=secret,
        reason=Reason.INVALID,
        message=(
            f"the names of the namespace, the Secret and its key are {len(target)} characters "
            f"together, and {LONGEST_SECRET_KEY} are allowed: give the Secret a shorter name"
        ),
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
