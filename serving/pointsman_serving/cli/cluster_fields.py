"""Fields of a ModelPool that only a Kubernetes cluster can honour: refused or named by `up`."""

from __future__ import annotations

from collections.abc import Iterator

from pointsman_api.manifests import ManifestError, Manifests
from pointsman_api.modelpool import ModelPool


def cluster_only_errors(manifests: Manifests, pool: ModelPool) -> Iterator[ManifestError]:
    """What keeps a pool from being served without a cluster."""
    if pool.spec.backend.pod_selector is not None:
        yield manifests.error(
            pool,
            ("spec", "backend", "type"),
            value=pool.spec.backend.type,
            message="finds pods, and there is no cluster here",
            next_step="here use RayServe, or External with the addresses of the servers",
        )
    autoscaling = pool.spec.autoscaling
    if autoscaling is not None and autoscaling.min_replicas == 0:
        yield manifests.error(
            pool,
            ("spec", "autoscaling", "minReplicas"),
            value=0,
            message="needs the operator, which wakes the pool when a request waits for it",
            next_step="here set it to 1 or more",
        )


def unused_fields(pool: ModelPool) -> Iterator[str]:
    """The fields of a pool that say nothing to a machine without a cluster."""
    backend = pool.spec.backend.ray_serve
    if backend is None:
        return
    if backend.engine.image:
        yield "engine.image: engines run in this Python environment"
    if backend.template is not None and backend.template.spec:
        yield "template (but for the resources of the container engine): there are no pods"
    if backend.model is None:
        return
    source = backend.model.source
    if backend.model.cache is not None:
        yield "model.cache: downloads go to the user's own cache"
    if source.hugging_face is not None and source.hugging_face.token_secret_ref is not None:
        yield "huggingFace.tokenSecretRef: set HF_TOKEN in the environment"
    if source.s3 is not None and source.s3.credentials_secret_ref is not None:
        yield "s3.credentialsSecretRef: set AWS_… in the environment"
