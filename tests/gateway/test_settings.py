from __future__ import annotations

import pytest

from pointsman_serving.gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"port": 70_000}, "port is 70000; it must be between 0 and 65535"),
        ({"port": -1}, "port is -1"),
        ({"max_body_bytes": 0}, "max_body_bytes is 0; it must be above 0"),
        ({"lame_duck_seconds": -1.0}, "lame_duck_seconds is -1.0; it must be 0 or more"),
        ({"silence_seconds": 0.0}, "silence_seconds is 0.0; it must be above 0"),
        ({"drain_seconds": -1.0}, "drain_seconds is -1.0; it must be 0 or more"),
    ],
)
def test_settings_are_refused_when_they_cannot_work(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GatewaySettings(**settings)  # type: ignore[arg-type]
