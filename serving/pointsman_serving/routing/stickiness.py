"""Which pool answers a conversation: tone and tool-call formats must not change half-way."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from pointsman_api.route_table import Rule
    from pointsman_serving.routing.types import RouteRequest

MAX_CONVERSATIONS: Final = 50_000


class Stay(NamedTuple):
    """Where a conversation was answered last."""

    pool: str
    replica: str
    until: float


def conversation_of(request: RouteRequest) -> int:
    """The conversation's key: the stated one, or what its turns have in common."""
    if not request.conversation:
        return request.prompt.root
    return xxh3_64_intdigest(
        "\x1f".join((request.model, request.tenant, request.conversation)).encode(
            "utf-8", "surrogatepass"
        )
    )


class Stickiness:
    """The latest conversations and their pools, at most 50,000, each for its time."""

    __slots__ = ("_limit", "_stays")

    def __init__(self, *, limit: int = MAX_CONVERSATIONS) -> None:
        self._limit = limit
        self._stays: OrderedDict[int, Stay] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stays)

    def find(self, conversation: int, *, now: float) -> Stay | None:
        """Where the conversation stays, if it does."""
        stay = self._stays.get(conversation)
        return stay if stay is not None and now < stay.until else None

    def stay_of(self, request: RouteRequest, rule: Rule, *, now: float) -> Stay | None:
        """Where a request's conversation stays, if it is one and stays at all.

        The same first message twice is none, unless the client says that it is one.
        """
        if rule.strategy.stickiness.ttl_seconds <= 0.0:
            return None
        if not request.conversation and not request.prompt.continues:
            return None
        return self.find(conversation_of(request), now=now)

    def remember(
        self, conversation: int, *, pool: str, replica: str, ttl_seconds: float, now: float
    ) -> None:
        """Keep the conversation for its time from now; the longest unused one makes room."""
        stays = self._stays
        stays[conversation] = Stay(pool, replica, now + ttl_seconds)
        stays.move_to_end(conversation)
        if len(stays) > self._limit:
            stays.popitem(last=False)
