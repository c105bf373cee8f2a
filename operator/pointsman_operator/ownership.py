"""Who owns what the operator writes in its own namespace: its Deployment.

With the release the Deployment goes, and Kubernetes deletes what it owns: also what an operator
that is just ending has written once more.
"""

from __future__ import annotations

import structlog

from pointsman_kube.client import Kube
from pointsman_kube.errors import Forbidden, NotFound
from pointsman_kube.kinds import Kind, Ref
from pointsman_operator.objects import Owner, metadata_of

log = structlog.get_logger(__name__)

DEPLOYMENT = Kind(group="apps", version="v1", plural="deployments", name="Deployment")


async def read_owner(kube: Kube, *, namespace: str, deployment: str) -> Owner | None:
    """The operator's own Deployment as an owner; None where none is named or it cannot be read.

    Args:
        deployment: its name; empty where the operator runs in none.

    Raises:
        KubeError: the API server does not answer.
    """
    if not deployment:
        return None
    ref = Ref(kind=DEPLOYMENT, namespace=namespace, name=deployment)
    try:
        found = await kube.get(ref)
    except (Forbidden, NotFound) as error:
        log.warning(
            "the operator's own Deployment cannot be read: what is written into its namespace "
            "stays when it is uninstalled",
            cause=str(error),
        )
        return None
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.name,
        "name": deployment,
        "uid": str(metadata_of(found).get("uid") or ""),
        # It does not manage them, and its own deletion waits for none of them.
        "controller": False,
        "blockOwnerDeletion": False,
    }
