"""The pods of PodSelector pools: one small watch for each such pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pointsman_api.meta import LabelOperator, LabelSelector
from pointsman_kube.client import Kube
from pointsman_kube.identity import Key
from pointsman_kube.kinds import POD, Object
from pointsman_kube.mirror import Mirror
from pointsman_kube.tasks import end_task
from pointsman_operator.mirrors import slim_pod


@dataclass(slots=True)
class _Watched:
    selector: str
    mirror: Mirror
    task: asyncio.Task[None]


class SelectedPods:
    """Follows the pods that PodSelector pools select.

    A watch by the pool's own selector asks for nothing else of the namespace, whereas one watch
    of all pods would hold the whole cluster's.

    Args:
        pool_changed: told the key of the pool of whose pods one changed.
    """

    def __init__(self, kube: Kube, *, pool_changed: Callable[[Key], None]) -> None:
        self._kube = kube
        self._pool_changed = pool_changed
        self._watched: dict[Key, _Watched] = {}

    def __iter__(self) -> Iterator[Mirror]:
        return iter([watched.mirror for watched in self._watched.values()])

    async def pods(self, key: Key, labels: LabelSelector) -> tuple[Object, ...]:
        """The pods of the pool's namespace that its selector takes now."""
        selector = selector_text(labels)
        watched = self._watched.get(key)
        if watched is None or watched.selector != selector:
            await self.forget(key)
            watched = self._watched[key] = self._start(key, selector)
        # One selector that the server does not take must not hold its pool's round for ever.
        await watched.mirror.answered_or_refused()
        return tuple(watched.mirror)

    async def forget(self, key: Key) -> None:
        """The pool is gone, or selects no pods any more."""
        watched = self._watched.pop(key, None)
        if watched is not None:
            await end_task(watched.task)

    async def close(self) -> None:
        """End all watches."""
        for key in list(self._watched):
            await self.forget(key)

    def _start(self, key: Key, selector: str) -> _Watched:
        mirror = Mirror(
            self._kube,
            POD,
            namespace=key[0],
            label_selector=selector,
            on_change=lambda *_: self._pool_changed(key),
            transform=slim_pod,
        )
        task = asyncio.create_task(mirror.run(), name=f"pods of {key[0]}/{key[1]}")
        return _Watched(selector, mirror, task)


def selector_text(selector: LabelSelector) -> str:
    """A selector as the API's query takes it."""
    parts = [f"{key}={value}" for key, value in sorted(selector.match_labels.items())]
    for item in selector.match_expressions:
        match item.operator:
            case LabelOperator.EXISTS:
                parts.append(item.key)
            case LabelOperator.DOES_NOT_EXIST:
                parts.append(f"!{item.key}")
            case LabelOperator.IN:
                parts.append(f"{item.key} in ({','.join(item.values)})")
            case LabelOperator.NOT_IN:
                parts.append(f"{item.key} notin ({','.join(item.values)})")
    return ",".join(parts)
