"""What `pointsman up` is about to run: read from files, checked, and nothing started yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pointsman_api.compile import compile_route_table
from pointsman_api.manifests import ManifestError, ManifestErrors, Manifests, load_manifests
from pointsman_api.meta import object_key
from pointsman_api.modelpool import ModelPool
from pointsman_api.route_table import RouteTable
from pointsman_serving.engines.application import serve_application
from pointsman_serving.models.sources import LocalSourceError, local_model


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


def read_plan(paths: Sequence[Path], machine: Machine) -> Plan:
    """Read, check and compile the manifests.

    Raises:
        ManifestErrors: everything that is wrong in them, what this machine lacks included.
    """
    manifests = load_manifests(paths)
    errors: list[ManifestError] = []
    applications = []
    for index, pool in enumerate(manifests.pools):
        errors.extend(_secret_errors(manifests, pool, machine))
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
    elif not (machine.secrets / secret).is_file():
        message = f"has no file {machine.secrets / secret}"
        step = "write the secret's value into that file"
    else:
        return []
    path = ("spec", "backend", "external", "credentialSecretRef")
    return [manifests.error(pool, path, value=secret, message=message, next_step=step)]
