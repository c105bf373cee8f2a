"""Carries a plan out: the only place that writes objects other than status."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import structlog

from pointsman_kube.client import Kube
from pointsman_kube.errors import Conflict, Invalid, Unavailable
from pointsman_kube.kinds import SECRET, Object, Ref, ref_of
from pointsman_kube.mirror import Mirror
from pointsman_operator.secret_reader import SecretReader

log = structlog.get_logger(__name__)

_UNREADABLE = "failed to create typed patch object"
"""An API server says so, with status 500, of an object with a field that its schema does not have,
or has in another form; it will say the same again."""


class Applier:
    """Writes, and tells the mirrors what the API server made of it before their watch does.

    Args:
        mirrors: those of the kinds that are written.
        wrote: told the resource of every object written.
    """

    def __init__(
        self,
        kube: Kube,
        secrets: SecretReader,
        mirrors: Iterable[Mirror],
        *,
        wrote: Callable[[str], None] = lambda resource: None,
    ) -> None:
        self._kube = kube
        self._secrets = secrets
        self._mirrors = {mirror.kind: mirror for mirror in mirrors}
        self._wrote = wrote
        self.telling = False
        """A mirror is being told of a write of ours: whoever wrote knows of the change already."""

    async def create(self, objects: Iterable[Object]) -> None:
        """Make these; one that exists already stays as it is."""
        for obj in objects:
            ref = ref_of(obj)
            try:
                self._took(ref, await self._kube.create(obj))
                log.info("made", object=str(ref))
            except Conflict as error:
                if error.reason != "AlreadyExists":
                    raise
                self._secrets.forget(ref.namespace, ref.name)

    async def apply(self, objects: Iterable[Object]) -> None:
        """Apply these one after the other.

        Raises:
            Invalid: the first that the server cannot take; those before it are applied.
            KubeError: the same for the first that could not be.
        """
        for obj in objects:
            ref = ref_of(obj)
            try:
                self._took(ref, await self._kube.apply(obj))
            except Unavailable as error:
                if _UNREADABLE not in str(error):
                    raise
                raise Invalid(str(error), status=error.status, reason="Invalid") from error
            log.info("applied", object=str(ref))

    async def delete(self, refs: Iterable[Ref]) -> None:
        """Delete these; one that is gone already is no error."""
        for ref in refs:
            mirror = self._mirrors.get(ref.kind)
            held = None if mirror is None else mirror.get(ref.namespace, ref.name)
            uid = str(_metadata(held).get("uid") or "")
            try:
                await self._kube.delete(ref, uid=uid, propagation="Background")
            except Conflict:
                # Another one has its name now; the next round sees it.
                continue
            self._wrote(ref.kind.resource)
            if ref.kind is SECRET:
                self._secrets.forget(ref.namespace, ref.name)
            if mirror is not None and held is not None and not _metadata(held).get("finalizers"):
                with self._telling():
                    mirror.drop(ref.namespace, ref.name, uid=uid)
            log.info("deleted", object=str(ref))

    def _took(self, ref: Ref, obj: Object) -> None:
        self._wrote(ref.kind.resource)
        if ref.kind is SECRET:
            self._secrets.take(ref.namespace, ref.name, obj)
        elif (mirror := self._mirrors.get(ref.kind)) is not None:
            with self._telling():
                mirror.take(obj)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        self.telling = True
        try:
            yield
        finally:
            self.telling = False


def _metadata(obj: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (obj or {}).get("metadata") or {}
