"""Keys and tokens out of a gateway's Secret."""

from __future__ import annotations

import base64

import pytest

from pointsman_api.route_table import BackendType, CredentialReference, PoolEntry
from pointsman_serving.gateway.credentials import CredentialError
from pointsman_serving.gateway.kubernetes.secrets import GatewaySecret


def pool(name: str = "p", credential: CredentialReference | None = None) -> PoolEntry:
    return PoolEntry(
        name=name,
        served_model_name="m",
        backend=BackendType.RAY_SERVE,
        credential=credential,
    )


def secret(**values: str) -> GatewaySecret:
    found = GatewaySecret("system/pointsman-default-credentials")
    found.take({key: base64.b64encode(value.encode()).decode() for key, value in values.items()})
    return found


@pytest.mark.parametrize(
    ("name", "token"), [("p", "one"), ("team/p", "two"), ("q", None), ("other/p", None)]
)
def test_token_is_that_of_the_pools_namespace_when_two_have_one_name(
    name: str, token: str | None
) -> None:
    found = secret(**{"token.default.p": "one\n", "token.team.p": "two", "token.default.q": ""})
    assert token == found.token(pool(name))


def test_key_is_none_when_the_pool_refers_to_none() -> None:
    assert secret().key(pool()) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "key k of the Secret team/s is not in the gateway's Secret system/pointsman-def"),
        ({"credential.team_s_k": " "}, "the operator copies it there"),
        ({"credential.team_s_k": "two\nlines"}, "printable ASCII"),
        ({"credential.default_s_k": "of another namespace"}, "is not in the gateway's Secret"),
    ],
)
def test_key_is_missed_with_its_place_when_the_secret_lacks_it(
    values: dict[str, str], said: str
) -> None:
    reference = CredentialReference(secret_namespace="team", secret_name="s", secret_key="k")
    with pytest.raises(CredentialError, match=said) as failure:
        secret(**values).key(pool(credential=reference))
    assert "lines" not in str(failure.value)


def test_path_is_never_read_when_a_table_of_somebody_elses_names_one() -> None:
    reference = CredentialReference(path="/etc/passwd", secret_name="s", secret_key="k")
    with pytest.raises(CredentialError, match="not in the gateway's Secret"):
        secret().key(pool(credential=reference))


def test_everything_stays_when_the_secret_is_not_base64() -> None:
    found = secret(**{"token.default.p": "one"})
    with pytest.raises(ValueError, match="not base64"):
        found.take({"token.default.p": "%%%"})
    assert "one" == found.token(pool())


def test_token_is_refused_when_no_header_can_carry_it() -> None:
    with pytest.raises(CredentialError, match="pool p: the token of its replicas"):
        secret(**{"token.default.p": "a\r\nx-evil: 1"}).token(pool())
