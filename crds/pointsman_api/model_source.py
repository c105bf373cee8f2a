"""Where a model's files come from, and where downloads are kept."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pointsman_api.meta import (
    NAME_PATTERN,
    NO_PARENT_FOLDER,
    LocalObjectReference,
    SecretKeyReference,
)
from pointsman_api.rules import ApiModel, union_rule

MODELS_FOLDER = "/var/lib/pointsman/models"
"""Where models lie by convention; ``pointsman up`` maps this prefix to a folder of its own."""


class ModelSourceType(StrEnum):
    """Where a model's files come from."""

    HUGGING_FACE = "HuggingFace"
    PERSISTENT_VOLUME_CLAIM = "PersistentVolumeClaim"
    S3 = "S3"
    HOST_PATH = "HostPath"


class HuggingFaceSource(ApiModel):
    """A model repository on the Hugging Face Hub."""

    repository: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*$", max_length=193),
    ]
    """Owner and name: ``Qwen/Qwen3-30B-A3B``."""
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/]*$", max_length=128)] = (
        "main"
    )
    """Branch, tag or commit. A commit keeps all replicas on the same weights."""
    token_secret_ref: SecretKeyReference | None = None
    """The token for a gated or private repository, which the engine gets as ``HF_TOKEN``.
    ``pointsman up`` takes it from its own environment."""


class PersistentVolumeClaimSource(ApiModel):
    """A folder on a volume that is already filled."""

    claim_name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=253)]
    """PersistentVolumeClaim in the pool's namespace; replicas on several nodes need
    ReadOnlyMany or ReadWriteMany."""
    path: Annotated[
        str, Field(pattern=r"^([^/\s]+(/[^/\s]+)*)?$", max_length=1024), NO_PARENT_FOLDER
    ] = ""
    """The model's folder inside the volume, relative to its root."""


class S3Source(ApiModel):
    """A folder in an S3-compatible object store, which the engine streams from."""

    uri: Annotated[
        str, Field(pattern=r"^s3://[a-z0-9][-a-z0-9.]{1,61}[a-z0-9](/[^\s]*)?$", max_length=1024)
    ]
    """Bucket and prefix of the model's files: ``s3://models/qwen3-30b``."""
    credentials_secret_ref: LocalObjectReference | None = None
    """A Secret whose keys the engine gets as environment variables: ``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, ``AWS_ENDPOINT_URL`` for a store that is not
    AWS. Absent: what the pods' service account may read."""


class HostPathSource(ApiModel):
    """A folder that is already on every machine that runs replicas."""

    path: Annotated[str, Field(pattern=r"^(/[^/\s]+)+$", max_length=1024), NO_PARENT_FOLDER]
    """Absolute path of the model's folder. By convention models lie under
    ``/var/lib/pointsman/models``; ``pointsman up`` looks for that prefix in its own models folder
    (``--models-dir``), which is where ``pointsman model import`` writes."""


class ModelSource(ApiModel):
    """Where the model's files come from: exactly the member that ``type`` names."""

    cel_rules = (
        union_rule("type", ModelSourceType.HUGGING_FACE, "huggingFace"),
        union_rule("type", ModelSourceType.PERSISTENT_VOLUME_CLAIM, "persistentVolumeClaim"),
        union_rule("type", ModelSourceType.S3, "s3"),
        union_rule("type", ModelSourceType.HOST_PATH, "hostPath"),
    )
    type: ModelSourceType
    """Which member is set."""
    hugging_face: HuggingFaceSource | None = None
    """A repository on the Hugging Face Hub."""
    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    """A folder on a volume."""
    s3: S3Source | None = None
    """A folder in an object store."""
    host_path: HostPathSource | None = None
    """A folder on the machine."""


class ModelCacheType(StrEnum):
    """Where downloaded files are kept."""

    PERSISTENT_VOLUME_CLAIM = "PersistentVolumeClaim"
    HOST_PATH = "HostPath"
    EMPTY_DIR = "EmptyDir"


class PersistentVolumeClaimCache(ApiModel):
    """A volume that outlives the pods."""

    claim_name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=253)]
    """PersistentVolumeClaim in the pool's namespace; replicas on several nodes need
    ReadWriteMany."""


class HostPathCache(ApiModel):
    """A folder of the node."""

    path: Annotated[str, Field(pattern=r"^(/[^/\s]+)+$", max_length=1024), NO_PARENT_FOLDER]
    """Absolute path; made if it is not there."""


class ModelCache(ApiModel):
    """Where an engine keeps what it downloads: the member that ``type`` names."""

    cel_rules = (
        union_rule("type", ModelCacheType.PERSISTENT_VOLUME_CLAIM, "persistentVolumeClaim"),
        union_rule("type", ModelCacheType.HOST_PATH, "hostPath"),
    )
    type: ModelCacheType
    """PersistentVolumeClaim and HostPath outlive a pod; EmptyDir lives as long as it."""
    persistent_volume_claim: PersistentVolumeClaimCache | None = None
    """A volume that outlives the pods."""
    host_path: HostPathCache | None = None
    """A folder of the node."""


class Model(ApiModel):
    """What is served."""

    source: ModelSource
    """Where the model's files come from."""
    cache: ModelCache | None = None
    """Where downloads are kept (``HF_HOME``); an EmptyDir if absent. ``pointsman up`` uses the
    user's own cache."""
