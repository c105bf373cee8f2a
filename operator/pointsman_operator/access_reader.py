"""Reads the Secrets ``NAME-access`` of pools, and remembers what was in those that are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pointsman_api.labels import AUTH_TOKEN_KEY, REPLICA_TOKEN_KEY, access_secret_name
from pointsman_api.modelpool import ModelPool
from pointsman_kube.identity import Key
from pointsman_kube.kinds import Object
from pointsman_operator.claims import Claim, claim_of
from pointsman_operator.objects import is_going
from pointsman_operator.secret_reader import SecretReader, decoded

_MISSING_SECONDS = 1.0
_AWAITED_SECONDS = 5.0
"""How old an answer may be while a pod says that it does not get its Secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What is known of one pool's Secret."""

    secret: Object | None = None
    """The Secret, if it is the pool's own."""
    lost: Object | None = None
    """The last whole one, where it is gone or a part of it is."""
    foreign: Object | None = None
    """What has its name and is not the pool's."""


@dataclass(frozen=True, slots=True)
class _Foreign:
    uid: str
    """Of the pool in whose way it is."""
    at: float
    secret: Object


class AccessReader:
    """One pool's Secret at a time.

    Args:
        age_seconds: a Secret is read again after this: it never changes, unless somebody deletes
            it.
        token_came: called when a pool's tokens were read that were not known before.
        now: seconds, of any epoch.
    """

    def __init__(
        self,
        secrets: SecretReader,
        *,
        age_seconds: float,
        token_came: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._secrets = secrets
        self._age_seconds = age_seconds
        self._token_came = token_came
        self._now = now
        self._tokens: dict[Key, str | None] = {}
        self._whole: dict[Key, tuple[str, Object]] = {}
        self._foreign: dict[Key, _Foreign] = {}

    async def read(self, pool: ModelPool, pods: Iterable[Object]) -> Access:
        """The pool's Secret.

        Args:
            pods: the pool's; one that waits for a Secret has it looked for at once.
        """
        key, uid = (pool.metadata.namespace, pool.metadata.name), pool.metadata.uid or ""
        foreign = self._foreign.pop(key, None)
        if foreign is not None and foreign.uid == uid and self._is_fresh(foreign):
            self._foreign[key] = foreign
            return Access(lost=self._lost(key, uid, None), foreign=foreign.secret)
        name = access_secret_name(key[1])
        secret = await self._secrets.read(key[0], name, most_age_seconds=self._age(key, pods))
        if secret is not None and claim_of(secret, pool) is not Claim.OURS:
            self._foreign[key] = _Foreign(uid, self._now(), secret)
            # What it holds is nobody's token: gateways keep the one that they have.
            self._secrets.take(key[0], name, None)
            return Access(lost=self._lost(key, uid, None), foreign=secret)
        self._note_token(key, secret)
        if secret is not None and _is_whole(secret):
            self._whole[key] = (uid, secret)
        return Access(secret=secret, lost=self._lost(key, uid, secret))

    def ray_token(self, key: Key) -> str | None:
        """Ray's token of a pool's clusters, as far as it was read.

        Clusters keep the one that they started with, also while the Secret is lost or foreign.
        """
        held = decoded(self._secrets.held(key[0], access_secret_name(key[1])))
        _, whole = self._whole.get(key, ("", None))
        return held.get(AUTH_TOKEN_KEY) or decoded(whole).get(AUTH_TOKEN_KEY)

    def read_again(self, key: Key) -> None:
        """Ask for the Secret the next time, also where its last answer is young."""
        self._secrets.forget(key[0], access_secret_name(key[1]))
        self._foreign.pop(key, None)

    def forget(self, key: Key) -> None:
        """The pool is gone, and its tokens with it."""
        self.read_again(key)
        self._tokens.pop(key, None)
        self._whole.pop(key, None)

    def _age(self, key: Key, pods: Iterable[Object]) -> float:
        if self._secrets.held(key[0], access_secret_name(key[1])) is None:
            # A missing one is soon asked for again: only its maker, who is us, knows that it came.
            return _MISSING_SECONDS
        return _AWAITED_SECONDS if any(map(_waits_for_secret, pods)) else self._age_seconds

    def _is_fresh(self, foreign: _Foreign) -> bool:
        return 0.0 <= self._now() - foreign.at < _MISSING_SECONDS

    def _lost(self, key: Key, uid: str, secret: Object | None) -> Object | None:
        if secret is not None and _is_whole(secret):
            return None
        known = self._whole.get(key)
        return known[1] if known is not None and known[0] == uid else None

    def _note_token(self, key: Key, secret: Object | None) -> None:
        token = decoded(secret).get(REPLICA_TOKEN_KEY)
        if self._tokens.get(key) != token:
            # Gateways send it with every request.
            self._tokens[key] = token
            self._token_came()


def _is_whole(secret: Object) -> bool:
    data = secret.get("data") or {}
    return all(data.get(name) for name in (AUTH_TOKEN_KEY, REPLICA_TOKEN_KEY))


def _waits_for_secret(pod: Object) -> bool:
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    waiting = [(item.get("state") or {}).get("waiting") or {} for item in containers]
    return not is_going(pod) and any(
        item.get("reason") == "CreateContainerConfigError" for item in waiting
    )
