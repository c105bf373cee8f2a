from __future__ import annotations

import pytest

from pointsman_api.modelpool import EngineType
from pointsman_operator.settings import OperatorSettings, settings_from


def test_what_is_not_set_keeps_its_default() -> None:
    assert OperatorSettings() == settings_from({})
    assert OperatorSettings() == settings_from({"POINTSMAN_OPERATOR_LEASE_SECONDS": "15"})


def test_each_kind_of_value_is_read() -> None:
    settings = settings_from(
        {
            "POINTSMAN_OPERATOR_NAMESPACE": "here",
            "POINTSMAN_OPERATOR_GATEWAYS": "default, inner",
            "POINTSMAN_OPERATOR_ALLOW_HOST_PATH": "true",
            "POINTSMAN_OPERATOR_ACCELERATED": "0",
            "POINTSMAN_OPERATOR_GATEWAY_ADMIN_PORT": "9191",
            "POINTSMAN_OPERATOR_GATEWAY_STALE_SECONDS": "2.5",
            "POINTSMAN_OPERATOR_HEAD_NODE_SELECTOR": '{"pool": "cheap"}',
            "POINTSMAN_OPERATOR_HEAD_TOLERATIONS": '[{"key": "cheap"}]',
        }
    )

    assert ("here", ("default", "inner")) == (settings.namespace, settings.gateways)
    assert (True, False) == (settings.allow_host_path, settings.accelerated)
    assert (9191, 2.5) == (settings.gateway_admin_port, settings.gateway_stale_seconds)
    assert {"pool": "cheap"} == settings.head_node_selector
    assert ({"key": "cheap"},) == settings.head_tolerations


@pytest.mark.parametrize("text", ["", "{}"])
def test_an_empty_object_is_none(text: str) -> None:
    assert {} == settings_from({"POINTSMAN_OPERATOR_HEAD_NODE_SELECTOR": text}).head_node_selector


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("ALLOW_HOST_PATH", "perhaps", "true or false"),
        ("GATEWAY_ADMIN_PORT", "many", "a whole number"),
        ("GATEWAY_STALE_SECONDS", "soon", "a number"),
        ("HEAD_NODE_SELECTOR", "[]", "a JSON object"),
        ("HEAD_TOLERATIONS", "{", "a JSON array"),
    ],
)
def test_a_wrong_value_is_told_with_its_variable(name: str, value: str, allowed: str) -> None:
    variable = f"POINTSMAN_OPERATOR_{name}"

    with pytest.raises(ValueError, match=rf"{variable} is '.*': it must be {allowed}"):
        settings_from({variable: value})


def test_every_engine_has_an_image() -> None:
    settings = OperatorSettings(vllm_image="v", transformers_image="t", simulated_image="s")

    assert ["v", "t", "s"] == [settings.engine_image(engine) for engine in EngineType]


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(OperatorSettings(redis_password="secret"))
