from __future__ import annotations

from typing import Any

import pytest

from pointsman_api.conditions import Reason
from pointsman_api.modelpool import ModelPool
from pointsman_operator.problem import RefusedSpecError
from pointsman_operator.sources import MountedModel, mounted_model, named_secrets
from tests.unit.operator.scenes import external_pool, made_pool


def pool_with(source: dict[str, Any], *, engine: str = "VLLM", **model: Any) -> ModelPool:
    return made_pool(engine={"type": engine}, ray_serve={"model": {"source": source, **model}})


def hugging_face(**fields: Any) -> dict[str, Any]:
    return {"type": "HuggingFace", "huggingFace": {"repository": "org/name", **fields}}


def claim(**fields: Any) -> dict[str, Any]:
    return {
        "type": "PersistentVolumeClaim",
        "persistentVolumeClaim": {"claimName": "weights", **fields},
    }


def s3(**fields: Any) -> dict[str, Any]:
    return {"type": "S3", "s3": {"uri": "s3://models/a", **fields}}


def test_a_simulated_pool_needs_nothing() -> None:
    assert MountedModel() == mounted_model(made_pool(), allow_host_path=False)


def test_a_claim_is_mounted_for_reading_and_its_path_found_below() -> None:
    model = mounted_model(pool_with(claim(path="qwen/a")), allow_host_path=False)

    assert "/var/lib/pointsman/model/qwen/a" == model.path
    assert {"claimName": "weights", "readOnly": True} == model.volumes[0]["persistentVolumeClaim"]
    assert model.mounts[0]["readOnly"] is True


def test_the_root_of_a_claim_is_the_model_when_no_path_is_given() -> None:
    assert (
        "/var/lib/pointsman/model" == mounted_model(pool_with(claim()), allow_host_path=False).path
    )


def test_a_folder_of_the_node_is_mounted_where_it_is() -> None:
    source = {"type": "HostPath", "hostPath": {"path": "/models/a"}}

    model = mounted_model(pool_with(source), allow_host_path=True)

    assert "/models/a" == model.path
    assert "/models/a" == model.mounts[0]["mountPath"]
    assert {"path": "/models/a", "type": "Directory"} == model.volumes[0]["hostPath"]


def test_a_repository_is_downloaded_with_its_token_into_the_cache() -> None:
    source = hugging_face(revision="abc", tokenSecretRef={"name": "hf", "key": "token"})

    model = mounted_model(pool_with(source), allow_host_path=False)

    assert ("org/name", "abc") == (model.path, model.revision)
    env = {item["name"]: item for item in model.env}
    assert {"name": "hf", "key": "token"} == env["HF_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert env["HF_HOME"]["value"].startswith(str(model.mounts[0]["mountPath"]))
    assert {} == model.volumes[0]["emptyDir"]


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        (
            {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": "cache"}},
            {"persistentVolumeClaim": {"claimName": "cache"}},
        ),
        (
            {"type": "HostPath", "hostPath": {"path": "/cache"}},
            {"hostPath": {"path": "/cache", "type": "DirectoryOrCreate"}},
        ),
        ({"type": "EmptyDir"}, {"emptyDir": {}}),
    ],
)
def test_the_cache_is_where_the_pool_says(cache: dict[str, Any], volume: dict[str, Any]) -> None:
    model = mounted_model(pool_with(hugging_face(), cache=cache), allow_host_path=True)

    assert volume.items() <= model.volumes[0].items()


def test_a_bucket_is_read_with_all_keys_of_its_secret() -> None:
    source = s3(credentialsSecretRef={"name": "store"})

    model = mounted_model(pool_with(source), allow_host_path=False)

    assert "s3://models/a" == model.path
    assert ({"secretRef": {"name": "store"}},) == model.env_from


def test_a_bucket_is_refused_when_the_engine_cannot_read_it() -> None:
    with pytest.raises(RefusedSpecError, match="Transformers cannot read"):
        mounted_model(pool_with(s3(), engine="Transformers"), allow_host_path=False)


@pytest.mark.parametrize(
    "pool",
    [
        pool_with({"type": "HostPath", "hostPath": {"path": "/models/a"}}),
        pool_with(hugging_face(), cache={"type": "HostPath", "hostPath": {"path": "/cache"}}),
    ],
)
def test_a_folder_of_the_node_is_refused_with_the_next_step(pool: ModelPool) -> None:
    with pytest.raises(RefusedSpecError, match="PersistentVolumeClaim") as refused:
        mounted_model(pool, allow_host_path=False)

    assert Reason.HOST_PATH_NOT_ALLOWED == refused.value.problem.reason


@pytest.mark.parametrize(
    ("pool", "secrets"),
    [
        (made_pool(), {}),
        (pool_with(hugging_face(tokenSecretRef={"name": "hf", "key": "token"})), {"hf": "token"}),
        (pool_with(s3(credentialsSecretRef={"name": "store"})), {"store": ""}),
        (external_pool(credentialSecretRef={"name": "key", "key": "api"}), {"key": "api"}),
    ],
)
def test_the_secrets_that_a_pool_names_are_known(pool: ModelPool, secrets: dict[str, str]) -> None:
    assert secrets == named_secrets(pool)
