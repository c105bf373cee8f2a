from __future__ import annotations

from pathlib import Path

import pytest

from pointsman_api.manifests import ManifestErrors
from pointsman_serving.cli.plan import Machine, read_plan

QUICKSTART = Path("examples/quickstart")

SIMULATED = """
apiVersion: pointsman.dev/v1alpha1
kind: ModelPool
metadata: {name: sim, namespace: %s}
spec:
  servedModelName: %s
  backend: {type: RayServe, rayServe: {engine: {type: Simulated}}}
  %s
"""
EXTERNAL = """
apiVersion: pointsman.dev/v1alpha1
kind: ModelPool
metadata: {name: hosted}
spec:
  servedModelName: big
  backend:
    type: External
    external:
      endpoints: [{url: "https://api.example.com/v1", modelName: vendor/big}]
      credentialSecretRef: {name: vendor, key: token}
"""


def simulated(name: str = "sim", namespace: str = "default", more: str = "") -> str:
    return SIMULATED % (namespace, name, more)


def write(folder: Path, *documents: str) -> list[Path]:
    file = folder / "pools.yaml"
    file.write_text("\n---\n".join(documents))
    return [file]


def models_with(folder: Path, *names: str) -> Machine:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    return Machine(models=folder)


def errors_of(paths: list[Path], folders: Machine) -> list[str]:
    with pytest.raises(ManifestErrors) as caught:
        read_plan(paths, folders)
    return [str(error) for error in caught.value.errors]


@pytest.mark.pain_13
def test_quickstart_becomes_two_applications_and_three_routes(tmp_path: Path) -> None:
    plan = read_plan([QUICKSTART], models_with(tmp_path, "smollm2", "smollm2-moe"))
    assert ["smollm2", "smollm2-moe"] == sorted(str(a["name"]) for a in plan.applications)
    assert {"assistant", "smollm2", "smollm2-moe"} == set(plan.table.routes)


def test_models_folder_stands_for_the_nodes_one_when_the_path_begins_with_it(
    tmp_path: Path,
) -> None:
    plan = read_plan([QUICKSTART], models_with(tmp_path, "smollm2", "smollm2-moe"))
    arguments = {a["name"]: a["args"] for a in plan.applications}
    assert str(tmp_path / "smollm2") == arguments["smollm2"]["model_path"]  # type: ignore[index]


def test_missing_model_is_named_with_file_and_line_when_its_folder_is_not_there(
    tmp_path: Path,
) -> None:
    first, second = errors_of([QUICKSTART], models_with(tmp_path, "other"))
    assert "modelpool-smollm2-moe.yaml:" in first
    assert "spec.backend.rayServe.model.source.hostPath.path" in second
    assert str(tmp_path / "smollm2") in second
    assert "other" in second
    assert "pointsman model import smollm2" in second


def test_secret_is_asked_for_when_no_folder_holds_it(tmp_path: Path) -> None:
    [error] = errors_of(write(tmp_path, EXTERNAL), Machine(models=tmp_path))
    assert "vendor/token" in error
    assert "--secrets-dir" in error


def test_secret_s_file_is_named_when_it_is_missing(tmp_path: Path) -> None:
    folders = Machine(models=tmp_path, secrets=tmp_path / "secrets")
    [error] = errors_of(write(tmp_path, EXTERNAL), folders)
    assert str(tmp_path / "secrets/vendor/token") in error


def test_credential_becomes_a_path_when_the_secret_is_there(tmp_path: Path) -> None:
    secret = tmp_path / "secrets/vendor/token"
    secret.parent.mkdir(parents=True)
    secret.write_text("key")
    plan = read_plan(
        write(tmp_path, EXTERNAL), Machine(models=tmp_path, secrets=tmp_path / "secrets")
    )
    credential = plan.table.pools["hosted"].credential
    assert credential is not None
    assert str(secret) == credential.path
    assert () == plan.applications


@pytest.mark.pain_13
def test_pool_has_no_application_when_it_is_at_zero(tmp_path: Path) -> None:
    paths = write(tmp_path, simulated(more="replicas: 0"))
    plan = read_plan(paths, Machine(models=tmp_path))
    assert () == plan.applications
    assert "sim" in plan.table.pools


def test_second_pool_is_refused_when_another_namespace_s_has_its_name(tmp_path: Path) -> None:
    paths = write(tmp_path, simulated("a"), simulated("b", namespace="team"))
    [error] = errors_of(paths, Machine(models=tmp_path))
    assert "metadata.name" in error


def test_source_of_a_cluster_is_refused_when_run_on_a_machine(tmp_path: Path) -> None:
    pool = simulated().replace(
        "{engine: {type: Simulated}}",
        "{engine: {type: VLLM}, model: {source: {type: PersistentVolumeClaim, "
        "persistentVolumeClaim: {claimName: weights}}}}",
    )
    [error] = errors_of(write(tmp_path, pool), Machine(models=tmp_path))
    assert "needs a Kubernetes cluster" in error


def test_resources_are_refused_when_they_are_no_quantity(tmp_path: Path) -> None:
    pool = simulated().replace(
        "{engine: {type: Simulated}}",
        "{engine: {type: Simulated}, template: {spec: {containers: "
        "[{name: engine, resources: {requests: {cpu: many}}}]}}}",
    )
    [error] = errors_of(write(tmp_path, pool), Machine(models=tmp_path))
    assert "'many'" in error


@pytest.mark.parametrize(
    ("engine", "flag"),
    [("Simulated", "--itration-seconds=0.02"), ("Transformers", "--dtyp=float32")],
)
def test_engine_s_flag_is_refused_with_file_and_line_when_it_is_unknown(
    tmp_path: Path, engine: str, flag: str
) -> None:
    model = ", model: {source: {type: HostPath, hostPath: {path: /m}}}"
    pool = simulated().replace(
        "{engine: {type: Simulated}}",
        f"{{engine: {{type: {engine}, args: ['{flag}']}}{model}}}",
    )
    errors = errors_of(write(tmp_path, pool), Machine(models=tmp_path))
    assert "engine.args" in errors[0]
    assert flag.split("=")[0] in errors[0]
    assert "pools.yaml:" in errors[0]


PODS = """
apiVersion: pointsman.dev/v1alpha1
kind: ModelPool
metadata: {name: pods}
spec:
  servedModelName: pods
  backend: {type: PodSelector, podSelector: {selector: {matchLabels: {app: vllm}}}}
"""


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (PODS, "finds pods, and there is no cluster here"),
        (simulated(more="autoscaling: {minReplicas: 0, maxReplicas: 2}"), "needs the operator"),
    ],
)
def test_pool_is_refused_when_only_a_cluster_could_serve_it(
    tmp_path: Path, document: str, message: str
) -> None:
    (error,) = errors_of(write(tmp_path, document), Machine(models=tmp_path))
    assert message in error
    assert "here " in error
