from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pointsman_api.labels import RESTARTED_AT_ANNOTATION
from pointsman_api.modelpool import ModelPool
from pointsman_operator.problem import RefusedSpecError
from pointsman_operator.ray_service import hosts_in, render_spec, replicas_of
from pointsman_operator.settings import OperatorSettings
from tests.unit.operator.scenes import made_pool, planned, quickstart_pool

GOLDEN = Path(__file__).parent / "golden"
CPU = OperatorSettings(
    allow_host_path=True,
    accelerated=False,
    runtime_image="pointsman:0.1.0",
    vllm_image="pointsman-engine:0.1.0",
    transformers_image="pointsman-engine:0.1.0",
    simulated_image="pointsman-engine:0.1.0",
)
GPU_MODEL = {"source": {"type": "HuggingFace", "huggingFace": {"repository": "org/name"}}}


def ray_service_of(pool: ModelPool, *, settings: OperatorSettings = CPU) -> dict[str, Any]:
    plan = planned(pool, replicas=pool.spec.replicas or 1, settings=settings)
    assert () == plan.problems
    return plan.apply[-1]


class Plain(yaml.SafeDumper):
    """Writes equal parts out each time, as people read them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Plain.add_representer(str, _text)


@pytest.mark.parametrize("name", ["smollm2", "smollm2-moe"])
def test_the_ray_service_of_the_quickstart_is_the_golden_one(name: str) -> None:
    """POINTSMAN_WRITE_GOLDEN=1 writes it anew; look at the difference before you keep it."""
    path = GOLDEN / f"rayservice-{name}.yaml"
    service = ray_service_of(quickstart_pool(name))
    if os.environ.get("POINTSMAN_WRITE_GOLDEN"):
        path.write_text(yaml.dump(service, Dumper=Plain, sort_keys=False, width=100))

    assert yaml.safe_load(path.read_text()) == service


@pytest.fixture(scope="module")
def kuberay_schema() -> dict[str, Any]:
    """The schema of RayService v1 in plain JSON Schema, closed for unknown fields."""
    binaries = pytest.importorskip("tests.cluster.binaries")
    try:
        crds = binaries.kuberay_crds()
    except binaries.BinaryMissingError as error:
        pytest.skip(f"KubeRay's CRDs are not here: {error}")
    text = next(path for path in crds if path.name == "ray.io_rayservices.yaml").read_text()
    document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(item for item in document["spec"]["versions"] if item["name"] == "v1")
    schema: dict[str, Any] = closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    return schema


def closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if result.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    if "properties" in result and "additionalProperties" not in result:
        result["additionalProperties"] = bool(result.get("x-kubernetes-preserve-unknown-fields"))
    return result


def varied_pools() -> Iterator[tuple[str, ModelPool, OperatorSettings]]:
    yield "vllm on the CPU", quickstart_pool("smollm2"), CPU
    yield "transformers", quickstart_pool("smollm2-moe"), CPU
    yield "simulated", made_pool(), CPU
    claim = {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": "weights"}}
    yield (
        "two GPUs, a claim, a template",
        made_pool(
            engine={"type": "VLLM"},
            ray_serve={
                "model": {"source": claim},
                "parallelism": {"tensor": 2},
                "template": {
                    "spec": {
                        "nodeSelector": {"gpu": "h100"},
                        "tolerations": [{"key": "gpu", "operator": "Exists"}],
                        "imagePullSecrets": [{"name": "registry"}],
                        "containers": [
                            {"name": "engine", "resources": {"requests": {"cpu": "4"}}},
                            {"name": "side", "image": "side:1"},
                        ],
                    }
                },
            },
        ),
        OperatorSettings(
            redis_address="redis:6379",
            redis_password="secret",
            head_memory_limit="4Gi",
            head_node_selector={"pool": "cheap"},
            head_tolerations=({"key": "cheap", "operator": "Exists"},),
        ),
    )


@pytest.mark.parametrize(
    ("pool", "settings"), [pytest.param(p, s, id=name) for name, p, s in varied_pools()]
)
def test_kuberay_knows_every_field_that_is_rendered(
    kuberay_schema: dict[str, Any], pool: ModelPool, settings: OperatorSettings
) -> None:
    jsonschema.validate(render_spec(pool, settings), kuberay_schema)


def test_an_unknown_field_would_be_noticed(kuberay_schema: dict[str, Any]) -> None:
    spec = json.loads(json.dumps(render_spec(made_pool(), CPU)))
    spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["nodeSelektor"] = {}

    with pytest.raises(jsonschema.ValidationError, match="nodeSelektor"):
        jsonschema.validate(spec, kuberay_schema)


def group(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    return found


def actor(spec: dict[str, Any]) -> dict[str, Any]:
    config = yaml.safe_load(spec["serveConfigV2"])
    found: dict[str, Any] = config["applications"][0]["deployments"][0]["ray_actor_options"]
    return found


def test_each_worker_offers_just_what_its_one_replica_takes() -> None:
    pool = made_pool(
        engine={"type": "VLLM"}, ray_serve={"model": GPU_MODEL, "parallelism": {"tensor": 4}}
    )

    spec = render_spec(pool, OperatorSettings())

    assert {"CPU": "1", "GPU": "4", "pointsman_replica": "1"} == group(spec)["resources"]
    assert {
        "num_cpus": 1.0,
        "num_gpus": 4.0,
        "resources": {"pointsman_replica": 1.0},
    } == actor(spec)
    engine = group(spec)["template"]["spec"]["containers"][0]
    assert {"nvidia.com/gpu": "4"} == engine["resources"]["limits"]


def test_each_pod_asks_for_its_share_of_the_gpus_when_a_replica_takes_several() -> None:
    pool = made_pool(
        engine={"type": "VLLM"},
        ray_serve={"model": GPU_MODEL, "parallelism": {"tensor": 4, "pipeline": 2, "hosts": 2}},
    )

    spec = render_spec(pool, OperatorSettings())

    (engine,) = group(spec)["template"]["spec"]["containers"]
    assert {"nvidia.com/gpu": "4"} == engine["resources"]["limits"]
    assert "4" == group(spec)["resources"]["GPU"]


def test_the_template_says_how_many_gpus_of_which_make() -> None:
    resources = {"limits": {"amd.com/gpu": "2", "cpu": "8"}}
    template = {"spec": {"containers": [{"name": "engine", "resources": resources}]}}
    pool = made_pool(
        engine={"type": "VLLM"},
        ray_serve={"model": GPU_MODEL, "parallelism": {"tensor": 2}, "template": template},
    )

    spec = render_spec(pool, OperatorSettings())

    assert {"CPU": "8", "GPU": "2", "pointsman_replica": "1"} == group(spec)["resources"]
    assert 2.0 == actor(spec)["num_gpus"]
    engine = group(spec)["template"]["spec"]["containers"][0]
    assert {"amd.com/gpu": "2", "cpu": "8"} == engine["resources"]["limits"]


def test_no_gpu_is_taken_where_the_nodes_have_none() -> None:
    pool = made_pool(engine={"type": "VLLM"}, ray_serve={"model": GPU_MODEL})

    spec = render_spec(pool, OperatorSettings(accelerated=False))

    assert "GPU" not in group(spec)["resources"]
    assert 0.0 == actor(spec)["num_gpus"]


def test_the_head_runs_no_replica() -> None:
    head = render_spec(made_pool(), CPU)["rayClusterConfig"]["headGroupSpec"]

    assert {"CPU": "0"} == head["resources"]


def gpu_pool(gpus: int, **parallelism: int) -> ModelPool:
    """A vLLM pool whose template gives each pod some GPUs."""
    limits = {"nvidia.com/gpu": str(gpus)}
    template = {"spec": {"containers": [{"name": "engine", "resources": {"limits": limits}}]}}
    return made_pool(
        engine={"type": "VLLM"},
        ray_serve={"model": GPU_MODEL, "parallelism": parallelism, "template": template},
    )


def deployment(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(spec["serveConfigV2"])["applications"][0]
    (only,) = found["deployments"]
    return {**only, "args": found["args"]}


def test_a_replica_takes_as_many_pods_as_its_gpus_need() -> None:
    spec = render_spec(gpu_pool(8, tensor=8, pipeline=2), OperatorSettings())

    bundle = {"CPU": 1.0, "GPU": 8.0, "pointsman_replica": 1.0}
    found = deployment(spec)
    assert [bundle, bundle] == found["placement_group_bundles"]
    assert "STRICT_SPREAD" == found["placement_group_strategy"]
    assert 2 == found["args"]["hosts"]
    assert 8.0 == actor(spec)["num_gpus"]
    assert {"CPU": "1", "GPU": "8", "pointsman_replica": "1"} == group(spec)["resources"]
    assert (2, 1) == (group(spec)["replicas"], group(spec)["numOfHosts"])


def test_a_replica_takes_the_pods_that_the_pool_says() -> None:
    spread = render_spec(gpu_pool(4, tensor=4, pipeline=2, hosts=4), OperatorSettings())
    simulated = render_spec(made_pool(ray_serve={"parallelism": {"hosts": 3}}), CPU)
    processors = render_spec(
        made_pool(
            engine={"type": "VLLM"},
            ray_serve={"model": GPU_MODEL, "parallelism": {"pipeline": 2, "hosts": 2}},
        ),
        CPU,
    )

    assert [4, 3, 2] == [group(each)["replicas"] for each in (spread, simulated, processors)]
    assert [{"CPU": 0.1, "pointsman_replica": 1.0}] * 3 == (
        deployment(simulated)["placement_group_bundles"]
    )
    assert [{"CPU": 1.0, "pointsman_replica": 1.0}] * 2 == (
        deployment(processors)["placement_group_bundles"]
    )


@pytest.mark.parametrize("parallelism", [{"tensor": 4}, {"tensor": 4, "hosts": 1}, {"tensor": 2}])
def test_a_replica_that_fits_into_one_pod_is_no_group(parallelism: dict[str, int]) -> None:
    spec = render_spec(gpu_pool(4, **parallelism), OperatorSettings())

    assert 1 == group(spec)["replicas"]
    assert not {"placement_group_bundles", "placement_group_strategy"} & set(deployment(spec))
    assert "hosts" not in deployment(spec)["args"]


@pytest.mark.parametrize(
    ("gpus", "parallelism", "said"),
    [
        (4, {"tensor": 6}, "needs 6 GPUs.* pods of 4 do not share evenly.* such as 3"),
        (4, {"tensor": 4, "data": 2}, "needs 8 GPUs.* gives its pod 4: with data 2"),
        (2, {"tensor": 8, "hosts": 2}, "4 for each of its 2 hosts.* gives one pod 2"),
    ],
)
def test_a_replica_that_no_pods_can_hold_is_refused_with_the_next_step(
    gpus: int, parallelism: dict[str, int], said: str
) -> None:
    with pytest.raises(RefusedSpecError, match=said):
        render_spec(gpu_pool(gpus, **parallelism), OperatorSettings())


def test_workers_are_wanted_for_every_host_of_every_replica() -> None:
    pool = made_pool(ray_serve={"parallelism": {"hosts": 2}}, replicas=3)

    service = ray_service_of(pool)

    assert 6 == group(service["spec"])["replicas"]
    assert 3 == deployment(service["spec"])["num_replicas"]
    assert (3, 2) == (replicas_of(service), hosts_in(service))
    assert 1 == hosts_in(ray_service_of(made_pool()))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"restartPolicy": "Always"}, "restartPolicy is 'Always'"),
        ({"hostNetwork": True}, "hostNetwork is true"),
        (
            {"containers": [{"name": "engine", "resources": {"limits": {"cpu": "a lot"}}}]},
            "cpu is 'a lot'",
        ),
        (
            {"containers": [{"name": "engine", "resources": {"limits": {"amd.com/gpu": "1.5"}}}]},
            r"amd\.com/gpu is '1\.5'",
        ),
    ],
)
def test_a_template_that_cannot_run_is_refused_with_its_field(
    template: dict[str, Any], said: str
) -> None:
    with pytest.raises(RefusedSpecError, match=said):
        render_spec(made_pool(ray_serve={"template": {"spec": template}}), CPU)


def test_serve_scales_nothing_by_itself_when_the_pool_is_autoscaled() -> None:
    pool = made_pool(autoscaling={"minReplicas": 0, "maxReplicas": 4})

    assert "autoscaling_config" not in render_spec(pool, CPU)["serveConfigV2"]


def test_the_number_of_replicas_can_be_read_back() -> None:
    assert 3 == replicas_of(planned(made_pool(), replicas=3).apply[-1])
    assert None is replicas_of({"metadata": {}})


def test_rays_autoscaler_knows_what_a_worker_offers() -> None:
    autoscaling = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    pool = made_pool(
        engine={"type": "VLLM"}, ray_serve={"model": GPU_MODEL, "parallelism": {"tensor": 2}}
    )
    spec = render_spec(pool, OperatorSettings())["rayClusterConfig"]
    cluster = {"metadata": {"name": "c", "namespace": "team"}, "spec": spec}

    types = autoscaling._derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]

    assert {"CPU": 1, "GPU": 2, "pointsman_replica": 1} == types["replica"]["resources"]
    assert 0 == types["headgroup"]["resources"]["CPU"]
    assert (0, 10_000) == (types["replica"]["min_workers"], types["replica"]["max_workers"])


def test_a_restart_replaces_the_replicas_and_not_the_cluster() -> None:
    annotations = {RESTARTED_AT_ANNOTATION: "2026-11-28T10:00:00Z"}
    engine = {"env": [{"name": "A", "value": "1"}]}
    before = render_spec(made_pool(engine=engine), CPU)
    after = render_spec(made_pool(engine=engine, annotations=annotations), CPU)

    assert before["rayClusterConfig"] == after["rayClusterConfig"]
    assert {"A": "1"} == actor(before)["runtime_env"]["env_vars"]
    assert {"A": "1", "POINTSMAN_RESTARTED_AT": "2026-11-28T10:00:00Z"} == (
        actor(after)["runtime_env"]["env_vars"]
    )


@pytest.mark.parametrize(
    ("change", "in_place"),
    [
        ({"engine": {"args": ["--seed=7"]}}, True),
        ({"engine": {"env": [{"name": "A", "value": "1"}]}}, True),
        ({"engine": {"maxSequences": 7}}, True),
        ({"contextTokens": 4096}, True),
        ({"engine": {"image": "other"}}, False),
        ({"ray_serve": {"template": {"spec": {"nodeSelector": {"gpu": "h100"}}}}}, False),
    ],
)
def test_only_image_and_hardware_need_a_second_cluster(
    change: dict[str, Any], in_place: bool
) -> None:
    before, after = render_spec(made_pool(), CPU), render_spec(made_pool(**change), CPU)

    assert before != after
    assert in_place == (before["rayClusterConfig"] == after["rayClusterConfig"])


def test_a_folder_of_the_node_in_the_template_is_never_rendered_where_it_is_not_allowed() -> None:
    template = {"spec": {"volumes": [{"name": "etc", "hostPath": {"path": "/etc"}}]}}

    with pytest.raises(RefusedSpecError, match="/etc"):
        render_spec(made_pool(ray_serve={"template": template}), OperatorSettings())
