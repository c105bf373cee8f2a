from __future__ import annotations

from typing import Any

from pointsman_operator.store import Change, Store
from tests.contract.samples import pool_document

KEY = ("default", "chat")


def pool(version: int, *, uid: str = "u1", generation: int = 1, **spec: Any) -> dict[str, Any]:
    document = pool_document("chat", **spec)
    document["metadata"] |= {
        "uid": uid,
        "resourceVersion": str(version),
        "generation": generation,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return document


def store_and_changes() -> tuple[Store, list[Change]]:
    changes: list[Change] = []
    return Store(changes.append), changes


def test_keeps_the_newer_state_when_an_older_event_comes_late() -> None:
    store, changes = store_and_changes()
    store.pools.take(pool(5, replicas=2))
    store.pools.take(pool(4, replicas=1))
    found = store.pools.get(KEY)
    assert found is not None
    assert 2 == found.spec.replicas
    assert 1 == len(changes)


def test_keeps_the_namesake_when_the_one_before_is_told_deleted() -> None:
    store, _ = store_and_changes()
    store.pools.take(pool(5))
    store.pools.take(pool(9, uid="u2"))
    store.pools.remove(KEY, uid="u1")
    assert store.pools.get(KEY) is not None
    store.pools.remove(KEY, uid="u2")
    assert store.pools.get(KEY) is None


def test_says_whether_more_than_the_status_changed_when_told() -> None:
    store, changes = store_and_changes()
    store.pools.take(pool(1))
    store.pools.take({**pool(2), "status": {"replicas": 1}})
    store.pools.take(pool(3, generation=2, replicas=4))
    assert [True, False, True] == [change.asks_for_more for change in changes]


def test_says_what_is_wrong_when_an_object_cannot_be_read() -> None:
    store, _ = store_and_changes()
    wrong = pool(1)
    wrong["spec"]["backend"] = {"type": "Teapot"}
    store.pools.take(wrong)
    assert store.pools.get(KEY) is None
    assert "spec.backend" in store.pools.problem(KEY)
    assert [] == store.pools.all()
    store.pools.take(pool(2))
    assert "" == store.pools.problem(KEY)


def test_reads_objects_when_their_metadata_has_fields_of_later_versions() -> None:
    store, _ = store_and_changes()
    document = pool(1)
    document["metadata"]["somethingNew"] = {"a": 1}
    store.pools.take(document)
    assert store.pools.get(KEY) is not None
