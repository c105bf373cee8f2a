"""Which of several operators acts: an election over one Lease object.

The leader renews the Lease; the others watch whether it does, each with its own clock: only the
*change* of what the Lease says counts, never the times written in it, so clocks may differ. A
leader that could not renew for ``renew_deadline_seconds`` stops writing by itself, well before
anyone else may take over.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from pointsman_kube.client import Kube
from pointsman_kube.errors import Conflict, KubeError, NotFound
from pointsman_kube.kinds import LEASE, Object, Ref
from pointsman_operator.objects import Owner, owned

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """How an election is timed.

    Raises:
        ValueError: the times do not keep two leaders apart.
    """

    lease_seconds: float = 15.0
    """Others take over when the Lease has not changed for this long."""
    renew_deadline_seconds: float = 10.0
    """A leader that could not renew for this long stops."""
    retry_seconds: float = 2.0
    """Between two renewals, and between two looks of those who wait."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 0 < self.retry_seconds < self.renew_deadline_seconds < self.lease_seconds:
            raise ValueError(
                f"retry_seconds {self.retry_seconds}, renew_deadline_seconds "
                f"{self.renew_deadline_seconds}, lease_seconds {self.lease_seconds}: each must be "
                "above 0 and below the next"
            )


class Election:
    """Takes part in the election.

    Args:
        kube: a connection that may always write: the fence of others asks this object.
        namespace: of the Lease.
        name: of the Lease.
        identity: unique to this process; a restarted one is another.
        clock: monotonic seconds.
        owner: of a Lease that we make.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
        source: random.Random | None = None,
        owner: Owner | None = None,
    ) -> None:
        self.identity = identity
        self.holder = ""
        """Who leads, as far as we know."""
        self._kube = kube
        self._ref = Ref(kind=LEASE, namespace=namespace, name=name)
        self._times = times or LeaseTimes()
        self._clock = clock
        self._source = source or random.Random()
        self._owner = owner
        self._renewed: float | None = None
        self._seen: tuple[object, ...] = ()
        self._seen_at = clock()
        self._lease: Object | None = None

    @property
    def leads(self) -> bool:
        """Whether we may act now. Turns false by itself when renewing fails for too long."""
        renewed = self._renewed
        return renewed is not None and self._clock() - renewed < self._times.renew_deadline_seconds

    async def win(self) -> None:
        """Wait until we lead."""
        while not await self._try():
            # Everybody waits for another time, or all ask at once when the leader is gone.
            await asyncio.sleep(self._times.retry_seconds * (0.8 + 0.4 * self._source.random()))
        log.info("leading", lease=str(self._ref), identity=self.identity)

    async def hold(self) -> None:
        """Renew until we lead no more, and return then."""
        while self.leads:
            await asyncio.sleep(self._times.retry_seconds)
            if not self.leads:
                break
            try:
                # A stuck call must not outlive the deadline.
                async with asyncio.timeout(self._left_seconds()):
                    if not await self._try():
                        self._renewed = None
            except TimeoutError:
                break
        self._renewed = None
        log.error(
            "the lease is lost", lease=str(self._ref), identity=self.identity, holder=self.holder
        )

    async def release(self) -> None:
        """Give the Lease back, so that another one need not wait for its end."""
        if not self.leads:
            return
        self._renewed = None
        try:
            lease = await self._kube.get(self._ref)
            if lease["spec"].get("holderIdentity") == self.identity:
                spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._kube.replace({**lease, "spec": spec})
                log.info("lease given back", lease=str(self._ref))
        except KubeError as error:
            log.warning("the lease could not be given back; it runs out", cause=str(error))

    def _left_seconds(self) -> float:
        since = self._clock() - (self._renewed or 0.0)
        return max(0.1, self._times.renew_deadline_seconds - since)

    async def _try(self) -> bool:
        """Take or renew the Lease; whether we hold it (or may still hold it) afterwards."""
        # Counted from before the call: what the server writes is younger than that.
        asked = self._clock()
        try:
            lease = await self._read_or_make()
            if lease is None:
                return False
            if not self._is_ours(lease) and not self._is_free(lease):
                return False
            written = await self._kube.replace({**lease, "spec": self._spec(lease)})
        except Conflict:
            # Somebody was faster, or our own call of before came through after all.
            self._lease = None
            return self.leads
        except KubeError as error:
            self._lease = None
            log.warning("no word about the lease", cause=str(error))
            return self.leads
        self._note(written, asked)
        return True

    async def _read_or_make(self) -> Object | None:
        if self._lease is not None and self.leads:
            # Nobody else writes it while we lead: one call for a renewal, not two.
            return self._lease
        try:
            lease = await self._kube.get(self._ref)
        except NotFound:
            made = {
                "apiVersion": LEASE.api_version,
                "kind": LEASE.name,
                "metadata": {"name": self._ref.name, "namespace": self._ref.namespace},
                "spec": {},
            }
            lease = await self._kube.create(owned(made, self._owner))
        spec = lease.get("spec") or {}
        self.holder = str(spec.get("holderIdentity") or "")
        seen = (self.holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()
        return lease

    def _is_ours(self, lease: Object) -> bool:
        return (lease.get("spec") or {}).get("holderIdentity") == self.identity

    def _is_free(self, lease: Object) -> bool:
        spec: dict[str, Any] = lease.get("spec") or {}
        if not spec.get("holderIdentity"):
            return True
        # The holder's own promise, where it is longer than ours: versions may differ.
        told = float(spec.get("leaseDurationSeconds") or 0)
        return self._clock() - self._seen_at > max(told, self._times.lease_seconds)

    def _spec(self, lease: Object) -> dict[str, object]:
        spec: dict[str, Any] = lease.get("spec") or {}
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = self._is_ours(lease)
        transitions = int(spec.get("leaseTransitions") or 0)
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": math.ceil(self._times.lease_seconds),
            "acquireTime": spec.get("acquireTime") if ours else now,
            "renewTime": now,
            "leaseTransitions": transitions if ours else transitions + 1,
        }

    def _note(self, written: Object, asked: float) -> None:
        self._lease = written
        self._renewed = asked
        self.holder = self.identity
