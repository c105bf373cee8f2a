"""The route table out of the operator's ConfigMaps: the last good one stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from pointsman_api.route_config import (
    IncompleteRouteConfigError,
    RouteConfigError,
    read_config,
)
from pointsman_api.route_table import RouteTable

log = structlog.get_logger(__name__)


class RouteTables:
    """Takes whole and readable tables, and says once why another one was not taken.

    Args:
        put: puts a table in force; raises ValueError where it cannot work.
        clock: seconds; monotonic.
    """

    def __init__(
        self, put: Callable[[RouteTable, str], None], *, clock: Callable[[], float]
    ) -> None:
        self._put = put
        self._clock = clock
        self._table: RouteTable | None = None
        self._config_hash = ""
        self._stale_since: float | None = None
        self._told = ""
        self.problem = ""
        """Why what is there now is not in force; empty where it is."""
        self.refused = 0
        """Tables that came and could not be taken."""

    @property
    def taken(self) -> bool:
        """Whether a table is in force."""
        return self._table is not None

    @property
    def stale_seconds(self) -> float:
        """Since when something else should be in force; 0 where nothing should."""
        return 0.0 if self._stale_since is None else self._clock() - self._stale_since

    def look(self, config_maps: Iterable[Mapping[str, Any]]) -> bool:
        """Take the table of all ConfigMaps, if it is another one than that in force.

        Returns:
            Whether it was put in force now.
        """
        try:
            config = read_config(config_maps)
            changed = config.table != self._table or config.config_hash != self._config_hash
            if changed:
                self._put(config.table, config.config_hash)
        except IncompleteRouteConfigError as error:
            self._keep(str(error))
            return False
        except (RouteConfigError, ValueError) as error:
            if str(error) != self.problem:
                self.refused += 1
            self._keep(str(error))
            self.tell()
            return False
        self._table, self._config_hash = config.table, config.config_hash
        if self._told:
            log.info("the route table is good again")
        self.problem = self._told = ""
        self._stale_since = None
        return changed

    def tell(self, *, patience_seconds: float = 0.0) -> None:
        """Say why the last good table stays, once, if it does so for that long."""
        if not self.problem or self.problem == self._told or self.stale_seconds < patience_seconds:
            return
        self._told = self.problem
        kept = "the last good one stays in force" if self.taken else "the gateway waits for one"
        log.error(f"the route table cannot be taken; {kept}", cause=self.problem)

    def _keep(self, problem: str) -> None:
        self.problem = problem
        if self._stale_since is None:
            self._stale_since = self._clock()
