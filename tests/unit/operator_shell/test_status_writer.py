from __future__ import annotations

from typing import Any

from pointsman_kube.kinds import Object
from pointsman_operator.conditions import EventNote
from pointsman_operator.events import EventWriter
from pointsman_operator.status_writer import StatusWriter
from tests.unit.operator_shell.small_api import SmallApi

POOL: dict[str, Any] = {
    "apiVersion": "pointsman.dev/v1alpha1",
    "kind": "ModelPool",
    "metadata": {"name": "chat", "namespace": "team", "uid": "u"},
}


class Scene:
    """A writer, and what it told."""

    def __init__(self) -> None:
        self.api = SmallApi()
        self.api.put(POOL)
        self.took: list[Object] = []
        kube: Any = self.api
        self.writer = StatusWriter(
            kube,
            EventWriter(kube, reporter="test"),
            events_between=lambda before, after: (
                EventNote(type="Warning", reason="Lost", message="Ready is False: lost"),
            ),
            took=self.took.append,
            now=lambda: 1_800_000_000.0,
        )

    @property
    def calls(self) -> list[str]:
        return [call.partition(" ")[0] for call in self.api.calls]


async def test_a_status_is_written_and_its_transition_told() -> None:
    scene = Scene()
    await scene.writer.write({**POOL, "status": {"a": 1}}, {"a": 2})
    assert ["status", "create"] == scene.calls
    assert [{"a": 2}] == [obj["status"] for obj in scene.took]


async def test_nothing_is_written_when_the_status_says_the_same() -> None:
    scene = Scene()
    await scene.writer.write({**POOL, "status": {"a": 1, "b": 2}}, {"b": 2, "a": 1})
    assert [] == scene.calls


async def test_nothing_is_told_when_the_object_is_gone() -> None:
    scene = Scene()
    scene.api.objects.clear()
    await scene.writer.write({**POOL, "status": {"a": 1}}, {"a": 2})
    assert (["status"], []) == (scene.calls, scene.took)
