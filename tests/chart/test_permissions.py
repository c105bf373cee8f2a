"""Who may do what, and with which settings they begin."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from pointsman_api.labels import credentials_name
from pointsman_api.modelpool import EngineType
from pointsman_operator.permissions import PERMISSIONS, Scope
from pointsman_operator.process_settings import process_settings_from
from pointsman_operator.settings import PREFIX, settings_from
from pointsman_serving.cli.main import app
from tests.chart.chart import Object, environment, one, render
from tests.chart.value_sets import PRODUCTION

Grant = tuple[str, str, str]


def grants(role: Object) -> set[Grant]:
    """Group, resource and verb of everything that a role grants."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def wanted(scope: Scope) -> set[Grant]:
    return {
        (each.group, each.resource, verb)
        for each in PERMISSIONS
        if each.scope == scope
        for verb in each.verbs
    }


@pytest.mark.parametrize(
    ("kind", "scope"), [("ClusterRole", Scope.CLUSTER), ("Role", Scope.OWN_NAMESPACE)]
)
def test_the_operator_is_granted_what_its_code_asks_and_no_more(kind: str, scope: Scope) -> None:
    assert wanted(scope) == grants(one(render(), kind, "operator"))


def test_the_gateway_reads_its_table_its_replicas_and_one_secret() -> None:
    role = one(render({"gateway": {"name": "public"}}), "Role", "gateway")
    assert {
        ("", "configmaps", "list"),
        ("", "configmaps", "watch"),
        ("discovery.k8s.io", "endpointslices", "list"),
        ("discovery.k8s.io", "endpointslices", "watch"),
        ("", "secrets", "list"),
        ("", "secrets", "watch"),
    } == grants(role)
    names = {
        resource: rule.get("resourceNames")
        for rule in role["rules"]
        for resource in rule["resources"]
    }
    assert {
        "configmaps": None,
        "endpointslices": None,
        "secrets": [credentials_name("public")],
    } == names


def test_no_role_grants_everything() -> None:
    for each in render(PRODUCTION):
        if each["kind"] in ("Role", "ClusterRole"):
            assert "*" not in str(each["rules"])


@pytest.mark.parametrize("values", [{}, PRODUCTION], ids=["defaults", "everything on"])
def test_bindings_bind_the_accounts_of_the_pods(values: dict[str, Any]) -> None:
    objects = render(values)
    for component, kinds in {
        "operator": ("Role", "ClusterRole"),
        "gateway": ("Role",),
    }.items():
        pod = one(objects, "Deployment", component)["spec"]["template"]["spec"]
        account = one(objects, "ServiceAccount", component)["metadata"]
        assert pod["serviceAccountName"] == account["name"]
        for kind in kinds:
            binding = one(objects, f"{kind}Binding", component)
            role = one(objects, kind, component)["metadata"]["name"]
            assert {"kind": kind, "name": role} == {
                key: binding["roleRef"][key] for key in ("kind", "name")
            }
            assert [(account["name"], account["namespace"])] == [
                (each["name"], each["namespace"]) for each in binding["subjects"]
            ]


def operator_environment(values: dict[str, Any]) -> dict[str, str]:
    """The operator's variables as its process sees them."""
    found = environment(one(render(values), "Deployment", "operator"))
    return {
        name: value if isinstance(value, str) else "from the cluster"
        for name, value in found.items()
        if name.startswith(PREFIX)
    }


@pytest.mark.parametrize(
    "values", [{}, PRODUCTION, {"redis": {"enabled": True}}], ids=["defaults", "all", "Redis"]
)
def test_the_operator_knows_every_variable_that_it_is_given(values: dict[str, Any]) -> None:
    variables = operator_environment(values)
    settings, process = settings_from(variables), process_settings_from(variables)
    unknown = [
        name
        for name in variables
        if not any(hasattr(each, name[len(PREFIX) :].lower()) for each in (settings, process))
    ]
    assert [] == unknown


def test_the_operator_is_told_the_deployment_that_owns_what_it_writes() -> None:
    deployment = one(render(), "Deployment", "operator")["metadata"]["name"]
    assert deployment == settings_from(operator_environment({})).deployment


def test_the_operator_takes_the_values_as_they_were_meant() -> None:
    settings = settings_from(
        operator_environment(
            {
                "operator": {
                    "gpu": {"enabled": False},
                    "allowHostPath": True,
                    "ray": {"objectStoreMemoryBytes": 4_000_000_000},
                    "rayHead": {
                        "nodeSelector": {"pool": "cheap"},
                        "tolerations": [{"key": "cheap", "operator": "Exists"}],
                    },
                }
            }
        )
    )
    assert (False, True, 4_000_000_000) == (
        settings.accelerated,
        settings.allow_host_path,
        settings.object_store_memory_bytes,
    )
    assert {"pool": "cheap"} == settings.head_node_selector
    assert ({"key": "cheap", "operator": "Exists"},) == settings.head_tolerations
    assert "pointsman-engine:0.1.0" == settings.engine_image(EngineType.SIMULATED)


def test_the_operator_listens_where_its_probes_ask() -> None:
    objects = render()
    process = process_settings_from(operator_environment({}))
    container = one(objects, "Deployment", "operator")["spec"]["template"]["spec"]["containers"][0]
    assert [process.listen_port] == [each["containerPort"] for each in container["ports"]]


def test_the_operator_asks_the_port_on_which_gateways_tell_their_status() -> None:
    container = one(render(), "Deployment", "gateway")["spec"]["template"]["spec"]["containers"][0]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert settings_from(operator_environment({})).gateway_admin_port == ports["admin"]


def test_the_gateway_knows_every_variable_that_it_is_given() -> None:
    command = typer.main.get_command(app).commands["gateway"]  # type: ignore[attr-defined]
    known: set[str] = set()
    for parameter in command.params:
        names = parameter.envvar or ()
        known.update([names] if isinstance(names, str) else names)
    given = environment(one(render(), "Deployment", "gateway"))
    assert set() == set(given) - known
