"""From a pool's model source to what its pods need: volumes, environment, a path. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pointsman_api.conditions import Reason
from pointsman_api.modelpool import EngineType, ModelCache, ModelCacheType, ModelPool
from pointsman_operator.problem import RefusedSpecError

MODEL_MOUNT = "/var/lib/pointsman/model"
"""Where a PersistentVolumeClaim with the model is mounted."""
CACHE_MOUNT = "/var/cache/pointsman"
"""Where what the engine downloads is kept."""

_MODEL_VOLUME = "pointsman-model"
_CACHE_VOLUME = "pointsman-cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountedModel:
    """What the pods of a pool need in order to find its model."""

    path: str = ""
    """A folder inside the pods, or a name that the engine resolves; empty for Simulated."""
    revision: str = ""
    """Of a repository; else empty."""
    volumes: tuple[Mapping[str, Any], ...] = ()
    mounts: tuple[Mapping[str, Any], ...] = ()
    env: tuple[Mapping[str, Any], ...] = ()
    env_from: tuple[Mapping[str, Any], ...] = ()


def mounted_model(pool: ModelPool, *, allow_host_path: bool) -> MountedModel:
    """Where the pool's replicas find their model.

    Raises:
        RefusedSpecError: the source needs a folder of the node and that is not allowed, or the
            engine cannot read it.
    """
    backend = pool.spec.backend.ray_serve
    if backend is None or backend.model is None:
        return MountedModel()
    source, cache = backend.model.source, backend.model.cache
    if source.host_path is not None:
        folder = source.host_path.path
        _check_host_path(f"model.source.hostPath.path {folder}", allow_host_path)
        return MountedModel(
            path=folder,
            volumes=({"name": _MODEL_VOLUME, "hostPath": {"path": folder, "type": "Directory"}},),
            mounts=({"name": _MODEL_VOLUME, "mountPath": folder, "readOnly": True},),
        )
    if source.persistent_volume_claim is not None:
        claim = source.persistent_volume_claim
        return MountedModel(
            path=f"{MODEL_MOUNT}/{claim.path}" if claim.path else MODEL_MOUNT,
            volumes=(
                {
                    "name": _MODEL_VOLUME,
                    "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True},
                },
            ),
            mounts=({"name": _MODEL_VOLUME, "mountPath": MODEL_MOUNT, "readOnly": True},),
        )
    volumes, mounts = _cache(cache, allow_host_path)
    if source.s3 is not None:
        if backend.engine.type != EngineType.VLLM:
            raise RefusedSpecError(
                f"spec.backend.rayServe.model.source.type is S3, which the engine "
                f"{backend.engine.type} cannot read: use the engine VLLM, or put the model on a "
                "PersistentVolumeClaim"
            )
        secret = source.s3.credentials_secret_ref
        return MountedModel(
            path=source.s3.uri,
            volumes=volumes,
            mounts=mounts,
            env=({"name": "HF_HOME", "value": f"{CACHE_MOUNT}/huggingface"},),
            env_from=() if secret is None else ({"secretRef": {"name": secret.name}},),
        )
    repository = source.hugging_face
    if repository is None:
        raise RefusedSpecError(
            f"spec.backend.rayServe.model.source has no member for its type {source.type}: set it"
        )
    token = repository.token_secret_ref
    env: list[Mapping[str, Any]] = [{"name": "HF_HOME", "value": f"{CACHE_MOUNT}/huggingface"}]
    if token is not None:
        reference = {"name": token.name, "key": token.key}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return MountedModel(
        path=repository.repository,
        revision=repository.revision,
        volumes=volumes,
        mounts=mounts,
        env=tuple(env),
    )


def named_secrets(pool: ModelPool) -> Mapping[str, str]:
    """The Secrets of the pool's namespace that it names, each with the key that must be in it.

    An empty key: every key is taken, none is asked for.
    """
    backend = pool.spec.backend
    found: dict[str, str] = {}
    if backend.external is not None and backend.external.credential_secret_ref is not None:
        reference = backend.external.credential_secret_ref
        found[reference.name] = reference.key
    model = backend.ray_serve.model if backend.ray_serve is not None else None
    if model is None:
        return found
    repository, store = model.source.hugging_face, model.source.s3
    if repository is not None and repository.token_secret_ref is not None:
        found[repository.token_secret_ref.name] = repository.token_secret_ref.key
    if store is not None and store.credentials_secret_ref is not None:
        found[store.credentials_secret_ref.name] = ""
    return found


def check_host_paths(pool: ModelPool, *, allow_host_path: bool) -> None:
    """Refuse a pool whose model, cache or template is a folder of the node, if not allowed.

    Raises:
        RefusedSpecError: it is.
    """
    backend = pool.spec.backend.ray_serve
    mounted_model(pool, allow_host_path=allow_host_path)
    if backend is not None and backend.template is not None:
        check_template_volumes(backend.template.spec, allow_host_path=allow_host_path)


def check_template_volumes(spec: Mapping[str, Any], *, allow_host_path: bool) -> None:
    """Refuse a pod template that mounts a folder of the node where that is not allowed.

    Raises:
        RefusedSpecError: it does.
    """
    volumes = spec.get("volumes")
    for volume in volumes if isinstance(volumes, list) else []:
        if isinstance(volume, Mapping) and "hostPath" in volume:
            folder = (volume["hostPath"] or {}).get("path", "")
            _check_host_path(
                f"template.spec.volumes[{volume.get('name', '')}].hostPath {folder}",
                allow_host_path,
            )


def _cache(
    cache: ModelCache | None, allow_host_path: bool
) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]:
    volume: dict[str, Any] = {"name": _CACHE_VOLUME}
    if cache is not None and cache.persistent_volume_claim is not None:
        volume["persistentVolumeClaim"] = {"claimName": cache.persistent_volume_claim.claim_name}
    elif cache is not None and cache.host_path is not None:
        folder = cache.host_path.path
        _check_host_path(f"model.cache.hostPath.path {folder}", allow_host_path)
        volume["hostPath"] = {"path": folder, "type": "DirectoryOrCreate"}
    elif cache is None or cache.type == ModelCacheType.EMPTY_DIR:
        volume["emptyDir"] = {}
    return (volume,), ({"name": _CACHE_VOLUME, "mountPath": CACHE_MOUNT},)


def _check_host_path(what: str, allowed: bool) -> None:
    if not allowed:
        raise RefusedSpecError(
            f"spec.backend.rayServe.{what} is a folder of the node, which this operator does not "
            "let pods use: put the files on a PersistentVolumeClaim, or have the operator started "
            "with POINTSMAN_OPERATOR_ALLOW_HOST_PATH=true (operator.allowHostPath in the chart)",
            reason=Reason.HOST_PATH_NOT_ALLOWED,
        )
