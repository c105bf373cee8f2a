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
    assert [KEY] == store.pools.unreadable()
    store.pools.take(pool(2))
    assert "" == store.pools.problem(KEY)


def test_reads_objects_when_their_metadata_has_fields_of_later_versions() -> None:
    store, _ = store_and_changes()
    document = pool(1)
    document["metadata"]["somethingNew"] = {"a": 1}
    store.pools.take(document)
    assert store.pools.get(KEY) is not None


def test_passes_over_fields_when_a_newer_version_of_the_crd_has_them() -> None:
    store, _ = store_and_changes()
    document = pool(1, replicas=3, later={"a": 1})
    document["spec"]["rollout"] = {"maxSurge": 1, "later": True}
    store.pools.take(document)
    found = store.pools.get(KEY)
    assert found is not None
    assert (3, "") == (found.spec.replicas, store.pools.problem(KEY))


def test_reads_the_object_when_its_status_is_not_of_this_version() -> None:
    store, _ = store_and_changes()
    status = {"observedGeneration": 4, "currentRevision": 7, "later": [], "conditions": "none"}
    store.pools.take({**pool(1), "status": status})
    found = store.pools.get(KEY)
    assert found is not None
    assert found.status is not None
    assert (4, None) == (found.status.observed_generation, found.status.current_revision)
    store.pools.take({**pool(2), "status": "none"})
    found = store.pools.get(KEY)
    assert found is not None
    assert found.status is None


def test_keeps_what_was_good_last_when_an_edit_cannot_be_read() -> None:
    store, _ = store_and_changes()
    store.pools.take(pool(1, replicas=2))
    assert 1 == len(store.pools.all())
    store.pools.take(pool(2, generation=2, replicas=5, backend={"type": "Teapot"}))
    assert store.pools.get(KEY) is None
    assert store.pools.problem(KEY).startswith("spec.backend.type: ")
    good = store.pools.last_good(KEY)
    assert good is not None
    assert (2, [good], []) == (good.spec.replicas, store.pools.all(), store.pools.unreadable())
    # Another event of the same object, such as our own status, does not lose it.
    store.pools.take(
        {**pool(3, generation=2, backend={"type": "Teapot"}), "status": {"replicas": 2}}
    )
    assert good == store.pools.last_good(KEY)
    store.pools.take(pool(4, generation=3, replicas=6))
    assert [6] == [item.spec.replicas for item in store.pools.all()]


def test_keeps_nothing_of_the_one_before_when_a_namesake_cannot_be_read() -> None:
    store, _ = store_and_changes()
    store.pools.take(pool(1))
    assert 1 == len(store.pools.all())
    store.pools.take(pool(2, uid="u2", backend={"type": "Teapot"}))
    assert [] == store.pools.all()


def test_does_not_read_the_spec_again_when_only_the_status_changed() -> None:
    store, _ = store_and_changes()
    store.pools.take(pool(1))
    before = store.pools.get(KEY)
    store.pools.take({**pool(2), "status": {"currentRevision": "r1"}})
    after = store.pools.get(KEY)
    assert before is not None
    assert after is not None
    assert before.spec is after.spec
    assert after.status is not None
    assert "r1" == after.status.current_revision


def test_names_the_field_as_kubectl_does_when_it_is_in_a_list() -> None:
    store, _ = store_and_changes()
    document = pool(1)
    document["spec"]["quality"] = [{"task": "Default", "score": "2"}]
    store.pools.take(document)
    assert store.pools.problem(KEY).startswith("spec.quality[0].score: ")
