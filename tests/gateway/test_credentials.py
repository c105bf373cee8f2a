from __future__ import annotations

import os
from pathlib import Path

import pytest

from pointsman_api.route_table import BackendType, CredentialReference, PoolEntry
from pointsman_serving.gateway.credentials import CredentialError, Credentials


def pool(**reference: str) -> PoolEntry:
    credential = CredentialReference(**reference) if reference else None
    return PoolEntry(
        name="p", served_model_name="m", backend=BackendType.EXTERNAL, credential=credential
    )


def test_credentials_are_none_when_the_pool_needs_none() -> None:
    assert Credentials().key(pool()) is None


def test_credentials_come_from_the_file_when_the_pool_names_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-1\n")
    credentials = Credentials()
    assert credentials.key(pool(path=str(path))) == "sk-1"
    path.write_text("sk-2\n")
    os.utime(path, ns=(1, 1))
    assert credentials.key(pool(path=str(path))) == "sk-2"


def test_credentials_come_from_the_environment_when_mapped() -> None:
    credentials = Credentials({"openai/key": "env:KEY"}, {"KEY": "sk-3"})
    assert credentials.key(pool(secret_name="openai", secret_key="key")) == "sk-3"


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ({}, "no credential 'openai/key' \\(it has: none\\)"),
        ({"a/b": "env:A"}, "it has: a/b"),
        ({"openai/key": "env:KEY"}, "KEY is empty or not set"),
        ({"openai/key": "file:/nowhere/key"}, "/nowhere/key cannot be read"),
        ({"openai/key": "vault:x"}, "use env:NAME or file:PATH"),
    ],
)
def test_credentials_say_what_is_missing_when_a_key_cannot_be_read(
    sources: dict[str, str], says: str
) -> None:
    with pytest.raises(CredentialError, match=says):
        Credentials(sources, {}).key(pool(secret_name="openai", secret_key="key"))


def test_credentials_refuse_a_key_when_it_would_split_the_header(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk\r\nx-evil: 1")
    with pytest.raises(CredentialError, match="printable ASCII"):
        Credentials().key(pool(path=str(path)))
