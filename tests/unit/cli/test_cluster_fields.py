"""What `pointsman up` says of fields that only a cluster honours."""

from __future__ import annotations

from pathlib import Path

from pointsman_api.manifests import load_manifests
from pointsman_serving.cli.cluster_fields import unused_fields

POOL = """
apiVersion: pointsman.dev/v1alpha1
kind: ModelPool
metadata: {name: qwen}
spec:
  servedModelName: qwen
  backend:
    type: RayServe
    rayServe:
      engine: {type: VLLM, image: "registry/vllm:1"}
      model:
        source:
          type: HuggingFace
          huggingFace: {repository: a/b, tokenSecretRef: {name: hf, key: token}}
        cache: {type: EmptyDir}
      template: {spec: {nodeSelector: {gpu: h100}}}
"""


def test_fields_are_named_when_there_is_no_cluster_to_honour_them(tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text(POOL)
    (pool,) = load_manifests([file]).pools
    assert ["engine.image", "template (but", "model.cache", "huggingFace.tokenSecretRef"] == [
        text.split(":")[0].split(" for")[0] for text in unused_fields(pool)
    ]


def test_nothing_is_named_when_the_quickstart_is_served() -> None:
    pools = load_manifests([Path("examples/quickstart")]).pools
    assert [] == [text for pool in pools for text in unused_fields(pool)]
