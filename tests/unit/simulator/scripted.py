"""Arms that do what a test says, and note what they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from pointsman_serving.simulator.arm import Action, Arm, Dispatch, Event, FleetView, Tokens
from pointsman_serving.simulator.request import SimRequest


class Scripted(Arm):
    """Sends each request where ``choose`` says; None keeps it."""

    name: ClassVar[str] = "scripted"

    def __init__(
        self,
        choose: Callable[[SimRequest, FleetView, float], int | None] = lambda *_: 0,
        *,
        tokens_every_seconds: float | None = None,
    ) -> None:
        self.choose = choose
        self.tokens_every_seconds = tokens_every_seconds
        self.told: list[tuple[float, Event]] = []
        self.on_event: Callable[[Event, FleetView, float], Sequence[Action]] = lambda *_: ()

    def arrive(self, request: SimRequest, view: FleetView, now: float) -> Sequence[Action]:
        index = self.choose(request, view, now)
        return () if index is None else (Dispatch(request, index),)

    def event(self, event: Event, view: FleetView, now: float) -> Sequence[Action]:
        self.told.append((now, event))
        return self.on_event(event, view, now)

    def kinds(self) -> list[str]:
        return [type(event).__name__ for _, event in self.told if not isinstance(event, Tokens)]
