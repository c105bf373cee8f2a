"""Which rule of which route a request falls under, and the weighted choice among targets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import re2
from xxhash import xxh3_64_intdigest

from pointsman_api.route_table import (
    HeaderMatch,
    HeaderMatchType,
    Route,
    RouteTable,
    Rule,
    RuleMatch,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pointsman_serving.routing.types import RouteRequest

# Expressions come from policies and values from clients: RE2 takes linear time whatever they are.
_OPTIONS: Final = re2.Options()
_OPTIONS.log_errors = False


class CompiledTable:
    """A route table whose expressions are ready.

    Raises:
        ValueError: a header expression is not valid.
    """

    __slots__ = ("_expressions", "table")

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self._expressions: dict[str, Any] = {}
        for name, route in table.routes.items():
            for rule in route.rules:
                for match in rule.matches:
                    self._compile(match.headers, where=f"model {name}, rule {rule.name}")

    def route(self, request: RouteRequest) -> tuple[Route, Rule] | None:
        """The first rule that matches, or None: no such model, or no such rule."""
        route = self.table.routes.get(request.model)
        if route is None:
            return None
        for rule in route.rules:
            if not rule.matches or any(self._holds(match, request) for match in rule.matches):
                return route, rule
        return None

    def _compile(self, headers: Iterable[HeaderMatch], *, where: str) -> None:
        for header in headers:
            if header.type is not HeaderMatchType.REGULAR_EXPRESSION:
                continue
            try:
                self._expressions[header.value] = re2.compile(header.value, _OPTIONS)
            except re2.error as error:
                raise ValueError(
                    f"{where}: header {header.name} has the regular expression "
                    f"{header.value!r}, which is not valid ({error}); correct it in the policy"
                ) from error

    def _holds(self, match: RuleMatch, request: RouteRequest) -> bool:
        tokens = request.prompt.estimated_tokens
        if match.min_input_tokens is not None and tokens < match.min_input_tokens:
            return False
        if match.max_input_tokens is not None and tokens > match.max_input_tokens:
            return False
        return all(self._has(header, request.headers) for header in match.headers)

    def _has(self, header: HeaderMatch, headers: Mapping[str, str]) -> bool:
        value = headers.get(header.name)
        if value is None:
            return False
        if header.type is HeaderMatchType.EXACT:
            return value == header.value
        return self._expressions[header.value].fullmatch(value) is not None


def weighted_order(targets: Sequence[Target], conversation: int) -> list[Target]:
    """Targets of positive weight in the order in which this conversation would take them.

    Each is first for its share of the conversations, and a changed weight moves no more
    conversations than it must. Source: weighted rendezvous hashing.
    """

    def distance(target: Target) -> tuple[float, str]:
        digest = xxh3_64_intdigest(target.pool.encode(), conversation)
        return -math.log((digest + 1) / 2.0**64) / target.weight, target.pool

    return sorted((target for target in targets if target.weight > 0), key=distance)
