from __future__ import annotations

from typing import Any

import pytest

from pointsman_operator.observed import (
    GatewayReport,
    PoolReport,
    ServeReading,
    read_gateway_status,
    read_serve,
)
from tests.unit.operator.scenes import NOW, serve_document


def test_a_reading_keeps_what_tells_a_roll_out() -> None:
    document = serve_document(
        {"a": ("10.0.0.1", 30000)},
        deployment="UPDATING",
        args={"pool": "chat"},
        deployed_at=7.0,
        started_at={"a": 9.0},
    )

    reading = read_serve(document, cluster="one", application="chat", read_at=NOW)

    assert ({"pool": "chat"}, 7.0, {"a": 9.0}) == (
        reading.deployed_args,
        reading.deployed_at,
        reading.started_at,
    )
    assert (True, False) == (reading.updating, reading.scaling)


@pytest.mark.parametrize("state", ["UPSCALING", "DOWNSCALING"])
def test_a_reading_tells_scaling_from_a_roll_out(state: str) -> None:
    document = serve_document({}, deployment=state)

    reading = read_serve(document, cluster="one", application="chat", read_at=NOW)

    assert (False, True) == (reading.updating, reading.scaling)


def test_an_application_that_ray_does_not_know_has_no_status() -> None:
    document = serve_document({}, pool="other")

    assert ServeReading(cluster="one", read_at=NOW) == read_serve(
        document, cluster="one", application="chat", read_at=NOW
    )


@pytest.mark.parametrize(
    "document",
    [[], {"applications": []}, "x", {"applications": {"chat": {"deployments": {"e": 1}}}}],
)
def test_another_answer_than_rays_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"must be an object|another shape|must be a list"):
        read_serve(document, cluster="one", application="chat", read_at=NOW)


def test_a_gateways_status_is_read() -> None:
    document = {
        "configHash": "abc",
        "ready": True,
        "draining": False,
        "pools": {
            "team/chat": {
                "queued": 3,
                "replicas": {
                    "a": {"state": "Closed", "openStreams": 2},
                    "b": {"state": "Open", "openStreams": 0},
                    "c": {"state": "Draining", "openStreams": 5},
                },
            }
        },
    }

    assert GatewayReport(
        pod="gateway-0",
        read_at=NOW,
        config_hash="abc",
        ready=True,
        pools={"team/chat": PoolReport(queued=3, open_streams=7, serving_replicas=1)},
    ) == read_gateway_status(document, pod="gateway-0", read_at=NOW)


def test_a_gateway_that_drains_is_not_ready() -> None:
    document = {"ready": True, "draining": True, "pools": {}}

    assert not read_gateway_status(document, pod="gateway-0", read_at=NOW).ready


@pytest.mark.parametrize(
    "document", [[], {"pools": ["a"]}, {"pools": {"a": 1}}, {"pools": {"a": {"queued": "x"}}}]
)
def test_another_status_than_a_gateways_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"must be an object|another shape"):
        read_gateway_status(document, pod="gateway-0", read_at=NOW)
