"""One round for one gateway: its route table and its keys; and for one policy: its status."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from pointsman_api.compile import RouteProblem
from pointsman_api.conditions import ModelPoolCondition, Reason, RoutePolicyCondition
from pointsman_api.labels import (
    GATEWAY_LABEL,
    access_secret_name,
    credential_key,
    credentials_name,
    token_key,
)
from pointsman_api.meta import object_key
from pointsman_api.modelpool import ModelPool
from pointsman_api.route_config import RouteConfigError, read_config
from pointsman_api.routepolicy import RoutePolicy
from pointsman_kube.client import Kube
from pointsman_kube.identity import Key
from pointsman_kube.kinds import Object
from pointsman_operator.apply import Applier
from pointsman_operator.conditions import Said, condition_documents, condition_of
from pointsman_operator.credential_reads import CredentialReads
from pointsman_operator.events import EventWriter
from pointsman_operator.gateway_plan import (
    REMEMBERED_TABLES,
    GatewayPlan,
    MadeTable,
    PolicyMemory,
    SecretData,
    Unreadable,
    plan_gateway,
    policy_parts,
)
from pointsman_operator.gateway_reports import GatewayReports
from pointsman_operator.mirrors import Mirrors
from pointsman_operator.objects import Owner, is_going, metadata_of
from pointsman_operator.observed import GatewayReport
from pointsman_operator.policy_status import policy_events, policy_status
from pointsman_operator.secret_reader import SecretReader
from pointsman_operator.settings import OperatorSettings
from pointsman_operator.status_writer import StatusWriter
from pointsman_operator.store import Store

log = structlog.get_logger(__name__)

_NEW_KEYS_SECONDS = 1.0
"""How long a table waits for the keys of External pools that are new in it."""
_SHOWN = 10
"""Of the objects that a line names."""
_FIRST_PLANS_SECONDS = 1.0
"""Until something is looked at again that needs a plan of every gateway."""


class GatewayReconciler:
    """Reconciles gateways by name, and the statuses of policies by key.

    Args:
        planned: told after each plan of a gateway the pools whose problems changed or whose
            replicas wait for their token, and the policies whose status may have changed.
        owner: of what is written.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        store: Store,
        mirrors: Mirrors,
        secrets: SecretReader,
        credentials: CredentialReads,
        applier: Applier,
        reports: GatewayReports,
        events: EventWriter,
        settings: OperatorSettings,
        planned: Callable[[Iterable[str], Iterable[Key]], None],
        resync_seconds: float,
        now: Callable[[], float],
        source: random.Random | None = None,
        owner: Owner | None = None,
    ) -> None:
        self._store = store
        self._mirrors = mirrors
        self._secrets = secrets
        self._credentials = credentials
        self._applier = applier
        self._reports = reports
        self._status = StatusWriter(
            kube, events, events_between=policy_events, took=store.policies.take, now=now
        )
        self._settings = settings
        self._planned = planned
        self._resync_seconds = resync_seconds
        self._now = now
        self._source = source or random.Random()
        self._owner = owner
        self._waiting: set[str] = set()
        self._plans: dict[str, GatewayPlan] = {}
        self._made: dict[str, MadeTable] = {}
        self._stopped: dict[str, str] = {}
        """Why nothing can be written for a gateway, as it was said."""
        self._problems: dict[str, dict[str, tuple[RouteProblem, ...]]] = {}

    def route_problems(self, pool: ModelPool) -> tuple[RouteProblem, ...]:
        """What compiling the route tables found wrong with a pool, each problem once."""
        found = [
            problem
            for problems in self._problems.values()
            for problem in problems.get(pool.key, ())
        ]
        return tuple(dict.fromkeys(found))

    async def reconcile(self, gateway: str) -> float | None:
        """Write the gateway's table and keys; returns when to look again."""
        pools, policies = self._store.pools.all(), self._store.policies.all()
        namespace, name = self._settings.namespace, credentials_name(gateway)
        credentials = await self._secrets.read(namespace, name)
        secrets = await self._secret_data(pools, (credentials or {}).get("data") or {})
        before = self._plans.get(gateway)
        unreadable = self._unreadable()
        try:
            plan = plan_gateway(
                gateway,
                pools,
                policies,
                namespace=namespace,
                namespace_labels=self._namespace_labels(),
                secrets=secrets,
                config_maps=self._config_maps(gateway),
                credentials=credentials,
                memory=self._recalled(gateway, policies) if before is None else before.memory,
                owner=self._owner,
                made=self._made.get(gateway),
                unreadable=unreadable,
            )
        except RouteConfigError as error:
            self._tell_stopped(gateway, str(error), unreadable)
            return self._later()
        self._stopped.pop(gateway, None)
        if plan.made is not None:
            # Also where it is not written, or only in part: it has what cannot be read.
            self._made[gateway] = plan.made
        await self._applier.apply(plan.apply)
        await self._applier.delete(plan.delete)
        self._plans[gateway] = plan
        waiting, self._waiting = self._waiting, set()
        self._planned(
            waiting.union(self._note_problems(gateway, plan)),
            touched_policies(policies, before, plan),
        )
        return self._later()

    def has_token(self, pool: ModelPool) -> bool:
        """Whether every gateway that knows a pool has its token; if not, its next plan tells."""
        if pool.spec.backend.ray_serve is None:
            return True
        key = token_key(pool.metadata.namespace, pool.metadata.name)
        for gateway in self._settings.gateways:
            plan = self._plans.get(gateway)
            secret = self._secrets.held(self._settings.namespace, credentials_name(gateway))
            known = (secret or {}).get("data") or {}
            if plan is None or (pool.key in plan.compiled.table.pools and key not in known):
                self._waiting.add(pool.key)
                return False
        return True

    def policies_between(
        self, gateway: str, before: GatewayReport | None, after: GatewayReport | None
    ) -> list[Key]:
        """The policies about which two reports of one gateway pod say different things."""
        plan = self._plans.get(gateway)
        if plan is None:
            return []
        policies = [
            policy
            for policy in self._store.policies.all()
            if policy.spec.gateway_ref.name == gateway
        ]
        if before is not None and after is not None and before.ready == after.ready:
            old, new, memory = before.config_hash, after.config_hash, plan.memory
            policies = [
                policy
                for policy in policies
                if memory.part(old, policy.key) != memory.part(new, policy.key)
            ]
        return [(policy.metadata.namespace, policy.metadata.name) for policy in policies]

    async def reconcile_policy(self, key: Key) -> float | None:
        """Write the status of a policy; returns when to look again."""
        raw = self._store.policies.raw(key)
        if raw is None or is_going(raw):
            return None
        policy = self._store.policies.get(key)
        if policy is None:
            if not all(gateway in self._plans for gateway in self._settings.gateways):
                # Whether it stays is not known before, and nothing of it was taken out yet.
                return _FIRST_PLANS_SECONDS
            stays = any(
                route.policy == object_key(*key)
                for plan in self._plans.values()
                for route in plan.compiled.table.routes.values()
            )
            problem = self._store.policies.problem(key)
            await self._status.write(raw, unreadable_status(raw, problem, stays, self._now()))
            return self._later()
        gateway = policy.spec.gateway_ref.name
        plan = self._plans.get(gateway)
        if plan is None and gateway in self._settings.gateways:
            # The gateway's first plan asks for this round again.
            return None
        status = policy_status(
            policy,
            plan,
            next((view for view in self._reports.views() if view.name == gateway), None),
            known_gateways=self._settings.gateways,
            pool_ready=self._pool_ready(policy),
            now=self._now(),
            stale_seconds=self._settings.gateway_stale_seconds,
            before=raw.get("status"),
        )
        await self._status.write(raw, status)
        return self._later()

    def _later(self) -> float:
        return self._resync_seconds * (0.8 + 0.4 * self._source.random())

    def _tell_stopped(self, gateway: str, cause: str, unreadable: Unreadable) -> None:
        if self._stopped.get(gateway) == cause:
            return
        self._stopped[gateway] = cause
        objects = sorted({*unreadable.pools, *unreadable.policies})
        log.error(
            "the gateway's route table stays as it is: neither it nor all objects can be read",
            gateway=gateway,
            cause=cause,
            unreadable=objects[:_SHOWN],
            next_step="correct or delete these objects, or update the operator",
        )

    def _recalled(self, gateway: str, policies: Iterable[RoutePolicy]) -> PolicyMemory:
        """What an operator before this one remembered, from what it has written."""
        try:
            config = read_config(self._config_maps(gateway))
        except RouteConfigError:
            return PolicyMemory()
        parts = policy_parts(config.table)
        # A status names the first table that had its policy as it was in the last one.
        told: dict[str, dict[str, str]] = {}
        for policy in policies:
            states = policy.status.gateways if policy.status is not None else ()
            for state in states:
                if state.name == gateway and state.config_hash and policy.key in parts:
                    told.setdefault(state.config_hash, {})[policy.key] = parts[policy.key]
        last = config.config_hash
        told.pop(last, None)
        return PolicyMemory(tables=(*sorted(told.items()), (last, parts))[-REMEMBERED_TABLES:])

    def _config_maps(self, gateway: str) -> list[Object]:
        return [
            item
            for item in self._mirrors.config_maps
            if (metadata_of(item).get("labels") or {}).get(GATEWAY_LABEL) == gateway
        ]

    async def _secret_data(
        self, pools: Iterable[ModelPool], known: Mapping[str, str]
    ) -> SecretData:
        """What was read of the Secrets of pools; only what is new is waited for.

        Args:
            known: the keys that the gateway has.
        """
        data: dict[Key, Mapping[str, str] | None] = {}
        wanted: set[Key] = set()
        new: set[Key] = set()
        for pool in pools:
            namespace = pool.metadata.namespace
            if pool.spec.backend.ray_serve is not None:
                # Read by the pool's own rounds, which tell when it is there.
                name = access_secret_name(pool.metadata.name)
                if (held := self._secrets.held(namespace, name)) is not None:
                    data[namespace, name] = held.get("data") or {}
            external = pool.spec.backend.external
            if external is not None and (reference := external.credential_secret_ref) is not None:
                wanted.add((namespace, reference.name))
                if credential_key(namespace, reference.name, reference.key) not in known:
                    new.add((namespace, reference.name))
        self._credentials.want(wanted)
        await self._credentials.wait_for(new, most_seconds=_NEW_KEYS_SECONDS)
        return data | self._credentials.data()

    def _unreadable(self) -> Unreadable:
        return Unreadable(
            pools=frozenset(object_key(*key) for key in self._store.pools.unreadable()),
            policies=frozenset(object_key(*key) for key in self._store.policies.unreadable()),
        )

    def _namespace_labels(self) -> dict[str, dict[str, str]]:
        return {
            str(metadata_of(item)["name"]): dict(metadata_of(item).get("labels") or {})
            for item in self._mirrors.namespaces
        }

    def _note_problems(self, gateway: str, plan: GatewayPlan) -> list[str]:
        """Keep the problems of pools; returns the keys of pools whose problems changed."""
        found: dict[str, tuple[RouteProblem, ...]] = {}
        for problem in plan.compiled.problems:
            if problem.kind == "ModelPool":
                found[problem.key] = (*found.get(problem.key, ()), problem)
        old = self._problems.get(gateway, {})
        self._problems[gateway] = found
        return [key for key in {*old, *found} if old.get(key) != found.get(key)]

    def _pool_ready(self, policy: RoutePolicy) -> dict[str, bool]:
        """The condition Ready of the pools that a policy names, by the pools' keys."""
        ready: dict[str, bool] = {}
        for pool in pools_named(policy):
            # As the API has it: one that could never be read may be in the table and serve.
            raw = self._store.pools.raw(pool)
            if raw is not None:
                condition = condition_of(raw.get("status"), ModelPoolCondition.READY)
                ready[object_key(*pool)] = condition.get("status") == "True"
        return ready


def pools_named(policy: RoutePolicy) -> set[Key]:
    """The pools that a policy's targets name."""
    return {
        (target.pool_ref.namespace or policy.metadata.namespace, target.pool_ref.name)
        for rule in policy.spec.rules
        for target in rule.targets
    }


def touched_policies(
    policies: Iterable[RoutePolicy], before: GatewayPlan | None, plan: GatewayPlan
) -> list[Key]:
    """The policies of a plan's gateway whose status may be another one after it."""
    touched = []
    for policy in policies:
        if policy.spec.gateway_ref.name != plan.gateway:
            continue
        seen = policy.status.observed_generation if policy.status is not None else None
        if (
            before is None
            or seen != policy.metadata.generation
            or _about(policy, before) != _about(policy, plan)
        ):
            touched.append((policy.metadata.namespace, policy.metadata.name))
    return touched


def _about(policy: RoutePolicy, plan: GatewayPlan) -> tuple[object, ...]:
    return plan.memory.part(plan.config_hash, policy.key), plan.compiled.problems_of(policy)


def unreadable_status(raw: Object, problem: str, stays: bool, now: float) -> dict[str, Any]:
    """The status of a policy that this version of the operator cannot read.

    Args:
        problem: what cannot be read, with its field.
        stays: whether it is in the route table as it was when it could be read last.
    """
    generation = int(raw["metadata"].get("generation") or 0)
    rest = "what was accepted last stays in force" if stays else "it is left out of the route table"
    message = (
        f"this operator cannot read the policy: {problem}; correct it, or update the operator; "
        f"{rest}"
    )
    kinds = (RoutePolicyCondition.ACCEPTED, RoutePolicyCondition.READY)
    said = [
        Said(type=kind, status=False, reason=Reason.INVALID, message=message)
        for kind in (kinds[:1] if stays else kinds)
    ]
    before = raw.get("status") or {}
    old = before.get("conditions") or ()
    documents = condition_documents(said, old, generation=generation, now=now)
    if not stays:
        return {"observedGeneration": generation, "conditions": documents}
    others = [item for item in old if item.get("type") != RoutePolicyCondition.ACCEPTED]
    return {**before, "observedGeneration": generation, "conditions": [*documents, *others]}
