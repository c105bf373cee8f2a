"""What `pointsman up` is about to run: read from files, checked, and nothing started yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from pointsman_api.compile import compile_route_table
from pointsman_api.manifests import ManifestError, ManifestErrors, Manifests, load_manifests
from pointsman_api.meta import object_key
from pointsman_api.modelpool import ModelPool
from pointsman_api.route_table import RouteTable
from pointsman_serving.cli.cluster_fields import cluster_only_errors
from pointsman_serving.engines.application import serve_application
from pointsman_serving.engines.arguments import check_arguments
from pointsman_serving.models.sources import LocalSourceError, local_model

_LEAST_CPUS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the manifests refer to, as this machine has it."""

    models: Path
    """Stands for ``/var/lib/pointsman/models``."""
    secrets: Path | None = None
    """Secrets as Kubernetes mounts them: NAME/KEY is a file."""
    has_gpus: bool = False
    """Replicas then take as many GPUs as their parallelism says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A set of manifests, ready to run on this machine."""

    manifests: Manifests
    table: RouteTable
    applications: tuple[dict[str, object], ...]
    """Ray Serve applications, one for each pool that has replicas."""

    @property
    def ray_cpus(self) -> int:
        """Processors that Ray counts with: room for every replica and, in a roll-out, for as many
        again. They are shares for placement, and do not bound what replicas use."""
        needed = 0.0
        for application in self.applications:
            for deployment in cast("list[dict[str, Any]]", application["deployments"]):
                scaling = deployment.get("autoscaling_config") or {}
                replicas = scaling.get("max_replicas") or deployment["num_replicas"]
                needed += replicas * deployment["ray_actor_options"]["num_cpus"]
        return max(_LEAST_CPUS, math.ceil(2 * needed))


def read_plan(paths: Sequence[Path], machine: Machine) -> Plan:
    """Read, check and compile the manifests.

    Raises:
        ManifestErrors: everything that is wrong in them, what this machine lacks included.
    """
    manifests = load_manifests(paths)
    errors = argument_errors(manifests)
    applications = []
    for index, pool in enumerate(manifests.pools):
        errors.extend(_secret_errors(manifests, pool, machine))
        errors.extend(cluster_only_errors(manifests, pool))
        if pool.spec.backend.ray_serve is None or pool.spec.replicas == 0:
            continue
        if any(pool.metadata.name == other.metadata.name for other in manifests.pools[:index]):
            errors.append(
                manifests.error(
                    pool,
                    ("metadata", "name"),
                    value=pool.metadata.name,
                    message="is the name of another namespace's pool too; here all share one Ray",
                    next_step="rename one of the two",
                )
            )
            continue
        try:
            applications.append(_application(pool, machine))
        except LocalSourceError as error:
            errors.append(
                manifests.error(
                    pool,
                    ("spec", "backend", "rayServe", "model", "source", *error.field),
                    value=error.value,
                    message=error.message,
                    next_step=error.next_step,
                )
            )
        except ValueError as error:
            field = ("spec", "backend", "rayServe")
            errors.append(manifests.error(pool, field, message=f"cannot be deployed: {error}"))
    if errors:
        raise ManifestErrors(errors)
    compiled = compile_route_table(
        manifests.pools,
        manifests.policies,
        namespace_labels=manifests.namespace_labels,
        secrets_folder=str(machine.secrets or ""),
    )
    return Plan(manifests=manifests, table=compiled.table, applications=tuple(applications))


def argument_errors(manifests: Manifests) -> list[ManifestError]:
    """Arguments that an engine would not take, where that is known without starting it."""
    errors = []
    for pool in manifests.pools:
        backend = pool.spec.backend.ray_serve
        if backend is None:
            continue
        try:
            check_arguments(backend.engine.type, backend.engine.args)
        except ValueError as error:
            path = ("spec", "backend", "rayServe", "engine", "args")
            errors.append(manifests.error(pool, path, message=f"cannot be used: {error}"))
    return errors


def _application(pool: ModelPool, machine: Machine) -> dict[str, object]:
    backend = pool.spec.backend.ray_serve
    if backend is None or backend.model is None:
        return serve_application(pool)
    model = local_model(backend.model.source, models=machine.models)
    return serve_application(
        pool,
        model_path=model.path,
        model_revision=model.revision,
        accelerated=machine.has_gpus,
    )


def _secret_errors(manifests: Manifests, pool: ModelPool, machine: Machine) -> list[ManifestError]:
    """A secret that is referred to and cannot be found below the secrets folder."""
    external = pool.spec.backend.external
    if external is None or external.credential_secret_ref is None:
        return []
    reference = external.credential_secret_ref
    secret = f"{object_key(pool.metadata.namespace, reference.name)}/{reference.key}"
    if machine.secrets is None:
        message, step = "needs a secret", "say where secrets lie as files: --secrets-dir FOLDER"
    else:
        file = machine.secrets / secret
        message, step = _credential_problem(file), "write the API key into that file"
        if not message:
            return []
    path = ("spec", "backend", "external", "credentialSecretRef")
    return [manifests.error(pool, path, value=secret, message=message, next_step=step)]


def _credential_problem(file: Path) -> str:
    """Why a file is no API key; empty if it is one."""
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        return f"has no file {file} that can be read ({error.strerror})"
    except UnicodeDecodeError:
        return f"has a file {file} that is not text"
    if not key:
        return f"has an empty file {file}"
    if not (key.isascii() and key.isprintable()):
        return f"has a file {file} with characters that no HTTP header can carry"
    return ""
