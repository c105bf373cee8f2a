"""A cluster that somebody else runs, with the methods of :class:`NodeCluster` that tests use."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from tests.cluster.cluster import Cluster
from tests.cluster.node.process import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.cluster.node.images import Recipe

REGISTRY_VARIABLE = "POINTSMAN_TEST_REGISTRY"


class ExistingCluster(Cluster):
    """The cluster of a kubeconfig; it has KubeRay, and this machine reaches its pods."""

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Nothing to enter: the pods are in this machine's reach."""
        yield

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """The command as it is."""
        return [str(word) for word in words]

    def load(self, recipe: Recipe, *, name: str = "") -> str:
        """How the cluster's pods name an image that somebody has pushed for them.

        Raises:
            ClusterError: no registry is named.
        """
        registry = os.environ.get(REGISTRY_VARIABLE, "").rstrip("/")
        if not registry:
            raise ClusterError(
                f"the pods of an existing cluster need {recipe.reference}: push "
                f"{recipe.archive} to a registry and name that in {REGISTRY_VARIABLE}"
            )
        return f"{registry}/{recipe.name}:{recipe.digest}"
