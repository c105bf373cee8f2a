"""Keys and tokens out of the one Secret that a gateway may read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from pointsman_api.labels import credential_key, token_key
from pointsman_api.meta import DEFAULT_NAMESPACE
from pointsman_api.route_table import PoolEntry
from pointsman_serving.gateway.credentials import CredentialError, header_value


class GatewaySecret:
    """What the operator has copied into the gateway's Secret. Implements ``PoolSecrets``.

    Args:
        name: of the Secret, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: dict[str, str] = {}

    def take(self, data: Mapping[str, str]) -> None:
        """Put the Secret's ``data`` in force.

        Raises:
            ValueError: a value is not base64; everything stays.
        """
        try:
            self._values = {
                key: base64.b64decode(value, validate=True).decode("utf-8", "replace").strip()
                for key, value in data.items()
            }
        except binascii.Error as error:
            raise ValueError(f"the Secret {self._name} holds what is not base64") from error

    def key(self, pool: PoolEntry) -> str | None:
        """The API key of an external pool; None where it has none.

        Raises:
            CredentialError: the Secret lacks it, or no header can carry it.
        """
        reference = pool.credential
        if reference is None:
            return None
        namespace = reference.secret_namespace or DEFAULT_NAMESPACE
        source = f"key {reference.secret_key} of the Secret {namespace}/{reference.secret_name}"
        entry = credential_key(namespace, reference.secret_name, reference.secret_key)
        value = self._values.get(entry)
        if not value:
            raise CredentialError(
                f"pool {pool.name}: the {source} is not in the gateway's Secret {self._name}; the "
                "operator copies it there as soon as it exists and is not empty"
            )
        return header_value(value, pool=pool.name, what=f"the API key in {source}")

    def token(self, pool: PoolEntry) -> str | None:
        """The token of a pool's replicas; None where the Secret has none.

        Raises:
            CredentialError: no header can carry it.
        """
        namespace, _, name = pool.name.rpartition("/")
        value = self._values.get(token_key(namespace or DEFAULT_NAMESPACE, name))
        if not value:
            return None
        return header_value(value, pool=pool.name, what="the token of its replicas")
