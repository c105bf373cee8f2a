from __future__ import annotations

from typing import Any

import pytest

from pointsman_operator.claims import Claim, claim_of, is_former
from pointsman_operator.objects import owner_reference, pool_labels
from tests.unit.operator.scenes import made_pool, ray_cluster

POOL = made_pool()
OURS = pool_labels(POOL, "access")
OWN = owner_reference(POOL)


def document(*owners: dict[str, Any], labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"metadata": {"name": "x", "labels": labels or {}, "ownerReferences": list(owners)}}


@pytest.mark.parametrize(
    ("claim", "item"),
    [
        (Claim.OURS, document(OWN, labels=OURS)),
        # Whoever took a label away did not take the object over.
        (Claim.OURS, document(OWN)),
        # Its owner was taken away, as `kubectl delete --cascade=orphan` does.
        (Claim.OURS, document(labels=OURS)),
        # With Redis the clusters own the Secret, too.
        (Claim.OURS, document({"kind": "RayCluster", "uid": "c"}, labels=OURS)),
        (Claim.FORMER, document({**OWN, "uid": "uid-old"}, labels=OURS)),
        (Claim.STRANGER, document({**OWN, "uid": "u", "name": "other"}, labels=OURS)),
        (Claim.STRANGER, document({"kind": "Certificate", "uid": "c", "controller": True})),
        (Claim.STRANGER, document({"kind": "App", "uid": "a", "controller": True}, labels=OURS)),
        (Claim.STRANGER, document(labels={**OURS, "pointsman.dev/pool": "other"})),
        (Claim.STRANGER, document(labels={"pointsman.dev/pool": "chat"})),
        (Claim.STRANGER, document()),
    ],
)
def test_an_object_is_whose_its_owner_and_its_labels_say(claim: Claim, item: Any) -> None:
    assert claim is claim_of(item, POOL)


@pytest.mark.parametrize(
    ("expected", "made"),
    [(True, "2026-11-01T00:00:00Z"), (False, "2026-11-01T00:00:01Z"), (False, None)],
)
def test_a_cluster_is_a_namesakes_when_it_was_made_before_the_pool(
    expected: bool, made: str | None
) -> None:
    metadata = POOL.metadata.model_copy(update={"creation_timestamp": "2026-11-01T00:00:01Z"})
    pool = POOL.model_copy(update={"metadata": metadata})
    cluster = ray_cluster("one", **({} if made is None else {"creationTimestamp": made}))

    assert expected is is_former(cluster, pool)
