"""A Kubernetes whose node runs pods, as tests use it: API, network, images, life and death."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Self

from tests.cluster.audit import ApiCall, read_calls
from tests.cluster.cluster import Cluster
from tests.cluster.node import host, images
from tests.cluster.node.layout import Layout
from tests.cluster.node.process import ClusterError, wait_for
from tests.cluster.node.sandbox import Sandbox

if TYPE_CHECKING:
    import http.client
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from tests.cluster.node.images import Recipe

DEFAULT_NAME = "node"
_POD_END_SECONDS = 30.0


class NodeCluster(Cluster):
    """A cluster that :func:`tests.cluster.node.start.start` made, in this process or another.

    Its addresses (node, pods, services) exist inside its network only: see :meth:`network` and
    :meth:`command`. As a context manager it ends the cluster.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.sandbox = Sandbox(layout)
        if not layout.kubeconfig.exists():
            raise ClusterError(f"there is no cluster {layout.name!r}: start it first")
        super().__init__(layout.kubeconfig)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        remove(self.layout, sandbox=self.sandbox)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Inside, this thread and what it starts reach pods and services, and nothing else."""
        with self.sandbox.network():
            yield

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """The command line that runs a program of this machine in the cluster's network."""
        return self.sandbox.command(words, network_only=True)

    def kubectl(self, *arguments: str, stdin: object = None, check: bool = True) -> str:
        """What kubectl prints; objects for ``-f -`` are given in ``stdin``."""
        with self.network():
            return super().kubectl(*arguments, stdin=stdin, check=check)

    def load(self, recipe: Recipe, *, name: str = "") -> str:
        """Give an image to the node and return how pods name it.

        Args:
            recipe: the image; it is built when the cache lacks it.
            name: another name, that it gets as well.
        """
        images.build(recipe)
        images.load(self.sandbox, recipe, name=name)
        return name or recipe.reference

    def calls(self) -> list[ApiCall]:
        """What service accounts of pods asked of the API server so far, oldest first."""
        return read_calls(self.layout.audit_log)

    def ready(self) -> bool:
        """Whether the API server says that it is."""
        with contextlib.suppress(OSError):
            return self.request("GET", "/readyz").status == 200
        return False

    def wait(self, what: str, *arguments: str, expected: str, timeout_seconds: float) -> None:
        """Wait until kubectl prints ``expected`` and nothing else.

        Raises:
            ClusterError: it did not in time; with what it printed last.
        """
        printed = ""

        def probe() -> bool:
            nonlocal printed
            printed = self.kubectl(*arguments, check=False).strip()
            return printed == expected

        try:
            wait_for(what, probe, timeout_seconds=timeout_seconds, poll_seconds=0.25)
        except ClusterError as error:
            raise ClusterError(
                f"{error} kubectl {' '.join(arguments)} printed {printed!r}"
            ) from None

    def _connect(self) -> http.client.HTTPConnection:
        connection = super()._connect()
        with self.network():
            connection.connect()
        return connection


def remove(layout: Layout, *, sandbox: Sandbox | None = None) -> bool:
    """End a cluster and remove all that it left: processes, mounts, network, cgroups, files.

    Harmless when there is nothing; mends what a killed run left.

    Returns:
        Whether there was anything.
    """
    if not layout.root.exists():
        return False
    # Everything inside, pods too, ends with the namespaces; the mounts and the network with them.
    (sandbox or Sandbox(layout)).end()
    host.restore_settings(layout)
    host.remove_cgroup(layout)
    _remove_folder(layout)
    return True


def _remove_folder(layout: Layout) -> None:
    mounted = [line for line in _mounts() if line.startswith(f"{layout.root}/")]
    if mounted:
        raise ClusterError(
            f"{mounted[0]} is mounted outside the cluster's namespaces: unmount it, then try again"
        )
    deadline = time.monotonic() + _POD_END_SECONDS
    while layout.root.exists():
        # The kernel may still be taking the mounts of the last process down.
        shutil.rmtree(layout.root, ignore_errors=time.monotonic() < deadline)
        time.sleep(0.05)


def _mounts() -> list[str]:
    with open("/proc/self/mounts", encoding="utf-8") as lines:  # noqa: PTH123
        return [os.fsdecode(line.split()[1]) for line in lines]
