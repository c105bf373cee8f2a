"""From a ModelPool to a Ray Serve application."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_api.modelpool import EngineType, ExpertsImplementation, ModelPool
from pointsman_serving.engines.application import (
    admitted_requests,
    serve_application,
    serve_config,
)
from pointsman_serving.engines.options import ReplicaOptions

MODEL = "/models/smollm2"


def pool(name: str = "smollm2", *, engine: str = "VLLM", **spec: Any) -> ModelPool:
    backend: dict[str, Any] = {"engine": {"type": engine, **spec.pop("engine_fields", {})}}
    if engine != "Simulated":
        source = {"type": "HostPath", "hostPath": {"path": f"/var/lib/pointsman/models/{name}"}}
        backend["model"] = {"source": source}
    backend |= spec.pop("backend_fields", {})
    document = {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "ModelPool",
        "metadata": {"name": name},
        "spec": {
            "servedModelName": name,
            "backend": {"type": "RayServe", "rayServe": backend},
            **spec,
        },
    }
    return ModelPool.model_validate(document)


def deployment(application: dict[str, Any]) -> dict[str, Any]:
    (only,) = application["deployments"]
    assert isinstance(only, dict)
    return only


def test_application_is_the_whole_entry_when_pool_is_dense() -> None:
    dense = pool(
        engine_fields={"args": ["--dtype=float32"], "maxSequences": 16},
        contextTokens=2048,
        replicas=2,
        rollout={"maxSurge": 1, "drainTimeout": "90s"},
    )
    expected = {
        "name": "smollm2",
        "route_prefix": "/smollm2",
        "import_path": "pointsman_serving.engines.replica:build",
        "args": {
            "pool": "smollm2",
            "engine": "VLLM",
            "served_model_name": "smollm2",
            "model_path": MODEL,
            "max_sequences": 16,
            "context_tokens": 2048,
            "experts": "Default",
            "arguments": ["--dtype=float32"],
            "revision": "c1f42475927b8113",
        },
        "deployments": [
            {
                "name": "engine",
                "num_replicas": 2,
                "max_ongoing_requests": 48,
                "graceful_shutdown_timeout_s": 90.0,
                "graceful_shutdown_wait_loop_s": 0.5,
                "health_check_period_s": 2.0,
                "health_check_timeout_s": 30.0,
                "max_surge_percent": 50,
                "rolling_update_percentage": 1.0,
                "ray_actor_options": {"num_cpus": 1.0, "num_gpus": 0.0},
            }
        ],
    }
    assert expected == serve_application(dense, model_path=MODEL)


def test_application_states_gpus_experts_and_environment_when_pool_is_moe() -> None:
    moe = pool(
        "moe",
        engine="Transformers",
        engine_fields={"env": [{"name": "TOKENIZERS_PARALLELISM", "value": "false"}]},
        backend_fields={
            "experts": {"implementation": "Pointsman"},
            "template": {
                "spec": {
                    "containers": [
                        {"name": "sidecar", "resources": {"requests": {"cpu": "9"}}},
                        {
                            "name": "engine",
                            "resources": {
                                "limits": {"cpu": 8, "nvidia.com/gpu": "1"},
                                "requests": {"cpu": "500m", "memory": "2Gi"},
                            },
                        },
                    ]
                }
            },
        },
    )
    application = serve_application(moe, model_path=MODEL, resources={"pool:moe": 1.0})
    assert {
        "num_cpus": 0.5,
        "num_gpus": 1.0,
        "resources": {"pool:moe": 1.0},
        "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
    } == deployment(application)["ray_actor_options"]
    options = ReplicaOptions.from_args(application["args"])  # type: ignore[arg-type]
    assert ExpertsImplementation.POINTSMAN == options.experts


@pytest.mark.parametrize(
    ("accelerated", "parallelism", "gpus"),
    [
        (False, {}, 0.0),
        (True, {}, 1.0),
        (True, {"tensor": 4, "pipeline": 2}, 8.0),
        (False, {"tensor": 4}, 0.0),
    ],
)
def test_gpus_follow_parallelism_when_nodes_have_them(
    accelerated: bool, parallelism: dict[str, int], gpus: float
) -> None:
    wide = pool(backend_fields={"parallelism": parallelism})
    application = serve_application(wide, model_path=MODEL, accelerated=accelerated)
    assert gpus == deployment(application)["ray_actor_options"]["num_gpus"]


def test_replica_shares_one_machine_when_its_hosts_have_no_places_of_their_own() -> None:
    spread = pool(backend_fields={"parallelism": {"tensor": 4, "hosts": 2}})
    entry = deployment(serve_application(spread, model_path=MODEL, accelerated=True))
    assert [{"CPU": 1.0, "GPU": 2.0}] * 2 == entry["placement_group_bundles"]
    assert "PACK" == entry["placement_group_strategy"]
    assert 2.0 == entry["ray_actor_options"]["num_gpus"]


def test_replica_is_told_its_hosts_when_they_are_several() -> None:
    spread = pool(engine="Simulated", backend_fields={"parallelism": {"hosts": 2}})
    args: Any = serve_application(spread)["args"]
    assert 2 == ReplicaOptions.from_args(args).hosts
    assert 1 == ReplicaOptions.from_args(serve_application(spread, hosts=1)["args"]).hosts  # type: ignore[arg-type]


def test_parallelism_becomes_flags_before_own_arguments_when_set() -> None:
    wide = pool(
        engine_fields={"args": ["--tensor-parallel-size=8"]},
        backend_fields={"parallelism": {"tensor": 4, "data": 2, "expertParallel": True}},
    )
    args: Any = serve_application(wide, model_path=MODEL)["args"]
    assert [
        "--tensor-parallel-size=4",
        "--data-parallel-size=2",
        "--enable-expert-parallel",
        "--tensor-parallel-size=8",
    ] == args["arguments"]


@pytest.mark.parametrize("engine", ["VLLM", "Transformers"])
def test_revision_is_a_flag_when_the_model_is_a_repository(engine: str) -> None:
    args: Any = serve_application(
        pool(engine=engine), model_path="owner/name", model_revision="abc"
    )["args"]
    assert ["--revision=abc"] == args["arguments"]


def test_simulated_takes_no_gpu_and_no_model_when_nodes_have_gpus() -> None:
    application = serve_application(pool(engine="Simulated"), accelerated=True)
    assert 0.0 == deployment(application)["ray_actor_options"]["num_gpus"]
    assert "model_path" not in application["args"]  # type: ignore[operator]


def test_scaling_is_serves_own_when_pool_has_autoscaling() -> None:
    scaled = pool(autoscaling={"minReplicas": 2, "maxReplicas": 6, "target": {"value": 12}})
    entry = deployment(serve_application(scaled, model_path=MODEL))
    assert "num_replicas" not in entry
    assert {
        "min_replicas": 2,
        "max_replicas": 6,
        "target_ongoing_requests": 12,
        "upscale_delay_s": 10.0,
        "downscale_delay_s": 300.0,
    } == entry["autoscaling_config"]


def test_number_is_the_callers_when_it_scales_the_pool_itself() -> None:
    scaled = pool(autoscaling={"minReplicas": 0, "maxReplicas": 8})
    entry = deployment(serve_application(scaled, model_path=MODEL, replicas=3))
    assert 3 == entry["num_replicas"]
    assert "autoscaling_config" not in entry
    with pytest.raises(ValueError, match="0 replicas"):
        serve_application(scaled, model_path=MODEL, replicas=0)


def test_revision_differs_when_the_pool_names_another_image() -> None:
    revisions = {
        serve_application(pool(engine_fields={"image": image}), model_path=MODEL)["args"][
            "revision"
        ]
        for image in ("", "registry/engine:1", "registry/engine:2")
    }
    assert 3 == len(revisions)


def test_old_replicas_go_a_few_at_a_time_when_there_is_no_surge() -> None:
    tight = pool(replicas=4, rollout={"maxSurge": 0})
    entry = deployment(serve_application(tight, model_path=MODEL))
    assert (0, 0.2) == (entry["max_surge_percent"], entry["rolling_update_percentage"])


def test_pool_is_refused_when_it_is_external() -> None:
    document = {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "ModelPool",
        "metadata": {"name": "far"},
        "spec": {
            "servedModelName": "far",
            "backend": {
                "type": "External",
                "external": {"endpoints": [{"url": "https://api.example.com/v1"}]},
            },
        },
    }
    with pytest.raises(ValueError, match="pool 'far' has the backend External"):
        serve_application(ModelPool.model_validate(document))


def test_pool_is_refused_when_it_has_no_replicas() -> None:
    with pytest.raises(ValueError, match="pool 'smollm2' has 0 replicas"):
        serve_application(pool(replicas=0), model_path=MODEL)


def test_pool_is_refused_when_its_model_has_no_place() -> None:
    with pytest.raises(ValueError, match="runs the engine VLLM without a model path"):
        serve_application(pool())


def test_quantity_is_refused_when_it_is_no_number() -> None:
    container = {"name": "engine", "resources": {"requests": {"cpu": "many"}}}
    odd = pool(backend_fields={"template": {"spec": {"containers": [container]}}})
    with pytest.raises(ValueError, match="cpu is 'many': give a number of units"):
        serve_application(odd, model_path=MODEL)


@pytest.mark.pain_11
def test_config_opens_replica_ports_when_deployed() -> None:
    config = serve_config(
        [serve_application(pool(), model_path=MODEL)], host="127.0.0.1", proxy_port=8123
    )
    assert {"host": "127.0.0.1", "port": 8123} == config["http_options"]
    # Disabled would close the replicas' ports too.
    assert "HeadOnly" == config["proxy_location"]


def test_config_is_taken_by_ray_when_validated() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    moe = pool("moe", engine="Transformers", autoscaling={"maxReplicas": 3})
    config = serve_config(
        [serve_application(each, model_path=MODEL) for each in (pool(), moe)],
        host="127.0.0.1",
        proxy_port=8123,
    )
    parsed = schema.ServeDeploySchema.model_validate(config)
    assert ["smollm2", "moe"] == [application.name for application in parsed.applications]


@settings(deadline=None)
@given(slots=st.integers(1, 4096))
def test_serve_admits_more_than_the_gateways_send_when_slots_are_full(slots: int) -> None:
    from pointsman_serving.routing.load import dispatch_credit

    assert admitted_requests(slots) >= slots + dispatch_credit(slots)


POOLS = st.builds(
    lambda name, replicas, sequences, args, surge: pool(
        name,
        replicas=replicas,
        engine_fields={"maxSequences": sequences, "args": args},
        rollout={"maxSurge": surge},
    ),
    name=st.from_regex(r"\A[a-z]([-a-z0-9]{0,8}[a-z0-9])?\Z"),
    replicas=st.integers(1, 20),
    sequences=st.integers(1, 512),
    args=st.lists(st.sampled_from(["--seed=1", "--dtype=float32", "--swap-space=0"]), max_size=3),
    surge=st.one_of(st.integers(0, 30), st.integers(0, 100).map(lambda percent: f"{percent}%")),
)


@settings(max_examples=50, deadline=None)
@given(POOLS)
def test_application_is_the_same_json_when_rendered_again(each: ModelPool) -> None:
    first = serve_application(each, model_path=MODEL)
    again = serve_application(
        ModelPool.model_validate(each.model_dump(mode="json", by_alias=True)), model_path=MODEL
    )
    assert json.dumps(first) == json.dumps(again)
    assert json.loads(json.dumps(first)) == first


@settings(max_examples=50, deadline=None)
@given(POOLS)
def test_options_survive_the_application_when_read_back(each: ModelPool) -> None:
    args: Any = json.loads(json.dumps(serve_application(each, model_path=MODEL)["args"]))
    options = ReplicaOptions.from_args(args)
    assert args == options.to_args()
    assert (EngineType.VLLM, each.metadata.name) == (options.engine, options.pool)


def test_revision_is_the_same_when_only_counts_and_prices_differ() -> None:
    def revision(**spec: Any) -> object:
        return serve_application(pool(**spec), model_path=MODEL)["args"]["revision"]  # type: ignore[index]

    assert revision(replicas=1) == revision(replicas=3, rollout={"maxSurge": 2})
    assert revision() != revision(contextTokens=64)
    assert revision() != revision(engine_fields={"env": [{"name": "A", "value": "b"}]})


@settings(max_examples=50, deadline=None)
@given(POOLS)
def test_surge_stays_in_bounds_when_limits_are_counts_or_percentages(each: ModelPool) -> None:
    entry = deployment(serve_application(each, model_path=MODEL))
    assert 0 <= entry["max_surge_percent"] <= 100
    assert 0 < entry["rolling_update_percentage"] <= 1


def test_options_name_the_argument_when_it_is_unknown() -> None:
    with pytest.raises(ValueError, match="does not know the argument 'colour'"):
        ReplicaOptions.from_args({"pool": "a", "engine": "VLLM", "colour": "red"})


def test_options_say_what_is_missing_when_incomplete() -> None:
    with pytest.raises(ValueError, match=r"incomplete: .*served_model_name"):
        ReplicaOptions.from_args({"pool": "a", "engine": "VLLM"})


def test_options_list_the_engines_when_the_engine_is_unknown() -> None:
    with pytest.raises(ValueError, match="'Abacus' is not a valid EngineType"):
        ReplicaOptions.from_args({"pool": "a", "engine": "Abacus", "served_model_name": "a"})
