"""The last words of containers that ended in failure, each asked for once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pointsman_kube.client import Kube
from pointsman_kube.errors import KubeError
from pointsman_kube.kinds import POD, Object, Ref
from pointsman_operator.causes import last_line
from pointsman_operator.objects import is_going, metadata_of, name_of

_LOG_LINES = 20
_REMEMBERED_LOGS = 512
_MOST_LOGS = 4
"""Crashed pods of one pool that are asked for their last words; the others say the same."""
_AGAIN_SECONDS = 10.0
"""Until a log that was empty, or that could not be read, is asked for again: the kubelet may have
been away, or not have written it yet."""


@dataclass(frozen=True, slots=True)
class _Said:
    line: str
    at: float


class LastLines:
    """Reads the last line of the log of each life of a container, and remembers it.

    Args:
        now: seconds, of any epoch.
    """

    def __init__(self, kube: Kube, *, now: Callable[[], float]) -> None:
        self._kube = kube
        self._now = now
        self._said: OrderedDict[tuple[str, ...], _Said] = OrderedDict()

    async def of(self, pods: Iterable[Object]) -> Mapping[str, str]:
        """The last line of each crashed pod, by the pod's name; without those that said nothing."""
        lines: dict[str, str] = {}
        asked = 0
        for pod in pods:
            crashed = None if is_going(pod) else _crashed_container(pod)
            if crashed is None:
                continue
            container, restarts = crashed
            life = (str(metadata_of(pod).get("uid")), container, str(restarts))
            if not self._knows(life):
                if asked >= _MOST_LOGS:
                    continue
                asked += 1
                line = await self._last_line(pod, container, previous=restarts > 0)
                self._remember(life, line)
            if line := self._said[life].line:
                lines[name_of(pod)] = line
        return lines

    def _knows(self, life: tuple[str, ...]) -> bool:
        said = self._said.get(life)
        return said is not None and (bool(said.line) or self._now() - said.at < _AGAIN_SECONDS)

    def _remember(self, life: tuple[str, ...], line: str) -> None:
        self._said[life] = _Said(line, self._now())
        self._said.move_to_end(life)
        while len(self._said) > _REMEMBERED_LOGS:
            self._said.popitem(last=False)

    async def _last_line(self, pod: Object, container: str, *, previous: bool) -> str:
        ref = Ref(kind=POD, namespace=str(metadata_of(pod)["namespace"]), name=name_of(pod))
        try:
            text = await self._kube.log(
                ref, container=container, previous=previous, lines=_LOG_LINES
            )
        except KubeError:
            return ""
        return last_line(text)


def _crashed_container(pod: Object) -> tuple[str, int] | None:
    """A container that ended in failure and does not run, and how often it was restarted."""
    status = pod.get("status") or {}
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            state = container.get("state") or {}
            ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
            if ended and not state.get("running") and ended.get("exitCode", 0) != 0:
                return str(container.get("name", "")), int(container.get("restartCount") or 0)
    return None
