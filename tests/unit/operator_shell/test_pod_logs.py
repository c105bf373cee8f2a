from __future__ import annotations

from typing import Any

from pointsman_operator.pod_logs import LastLines
from tests.unit.operator.scenes import worker_pod
from tests.unit.operator_shell.small_api import SmallApi


def crashed(name: str, *, restarts: int = 1, going: bool = False) -> Any:
    container = {
        "name": "engine",
        "restartCount": restarts,
        "state": {"terminated": {"exitCode": 1}},
    }
    return worker_pod(name, "", going=going, status={"containerStatuses": [container]})


class Scene:
    """Logs of pods, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.api = SmallApi()
        self.lines = LastLines(self.api, now=lambda: self.now)  # type: ignore[arg-type]


async def test_the_last_line_is_read_once_for_each_life_of_a_container() -> None:
    scene = Scene()
    scene.api.logs["a"] = "one\ntwo\n\n"
    for scene.now in (0.0, 100.0):
        assert {"a": "two"} == await scene.lines.of([crashed("a")])
    assert 1 == len(scene.api.calls)
    scene.api.logs["a"] = "three\n"
    assert {"a": "three"} == await scene.lines.of([crashed("a", restarts=2)])


async def test_a_log_is_asked_for_again_after_a_while_when_it_could_not_be_read() -> None:
    scene = Scene()
    assert {} == await scene.lines.of([crashed("a")])
    scene.api.logs["a"] = "CUDA error\n"
    scene.now = 9.0
    assert {} == await scene.lines.of([crashed("a")])
    scene.now = 10.0
    assert {"a": "CUDA error"} == await scene.lines.of([crashed("a")])


async def test_four_pods_are_asked_at_most_and_those_that_go_or_run_are_not() -> None:
    scene = Scene()
    pods = [crashed(f"p{number}") for number in range(9)]
    scene.api.logs = {f"p{number}": "x" for number in range(9)}
    assert 4 == len(await scene.lines.of(pods))
    assert {} == await scene.lines.of([crashed("g", going=True), worker_pod("r", "10.0.0.1")])
    assert 4 == len(scene.api.calls)
