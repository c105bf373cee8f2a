from __future__ import annotations

from typing import Any

from pointsman_operator.pool_memory import PoolMemory, held_seconds


def status(ready: str, counted: int) -> dict[str, Any]:
    condition = {"type": "Ready", "status": ready, "reason": "ReplicasNotReady"}
    return {"observedGeneration": 1, "replicas": counted, "conditions": [condition]}


def test_a_fleeting_status_is_written_when_it_has_waited_and_not_before() -> None:
    memory, before = PoolMemory(), status("False", 0)

    assert 3.0 == held_seconds(memory, before, status("False", 1), 100.0)
    assert 2.0 == held_seconds(memory, before, status("False", 2), 101.0)
    assert 0.0 == held_seconds(memory, before, status("False", 3), 103.0)
    assert 3.0 == held_seconds(memory, status("False", 3), status("False", 4), 104.0)


def test_a_status_is_written_at_once_when_ready_changes() -> None:
    memory, before = PoolMemory(), status("False", 0)
    held_seconds(memory, before, status("False", 1), 100.0)

    assert 0.0 == held_seconds(memory, before, status("True", 1), 100.1)
    assert None is memory.untold_since


def test_nothing_waits_when_the_status_is_as_before_again() -> None:
    memory, before = PoolMemory(), status("False", 0)
    held_seconds(memory, before, status("False", 1), 100.0)

    assert 0.0 == held_seconds(memory, before, before, 100.1)
    assert 3.0 == held_seconds(memory, before, status("False", 1), 109.0)


def test_a_status_is_written_when_the_clock_was_set_back() -> None:
    memory, before = PoolMemory(), status("False", 0)
    held_seconds(memory, before, status("False", 1), 100.0)

    assert 0.0 == held_seconds(memory, before, status("False", 1), 50.0)
