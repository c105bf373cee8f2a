"""``python -m tests.cluster.node check|up|down|status``: a cluster by hand."""

from __future__ import annotations

import argparse
import os
import sys

from tests.cluster.node import host, recipes
from tests.cluster.node.cluster import DEFAULT_NAME, NodeCluster, remove
from tests.cluster.node.layout import Layout
from tests.cluster.node.phases import Phases
from tests.cluster.node.process import ClusterError
from tests.cluster.node.start import Options, start


def main(arguments: list[str]) -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.node",
        description=__doc__,
        epilog="kubectl takes its arguments after --",
    )
    parser.add_argument("command", choices=["check", "up", "down", "status", "shell", "kubectl"])
    parser.add_argument("--name", default=DEFAULT_NAME)
    parser.add_argument("--keep", action="store_true", help="stay up when this program ends")
    split = arguments.index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:split])
    given.rest = arguments[split + 1 :]
    try:
        return _run(given)
    except (ClusterError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    layout = Layout.named(given.name)
    match given.command:
        case "check":
            host.require()
            print("a node can run here")
        case "up":
            _up(given)
        case "down":
            print("removed" if remove(layout) else f"there is no cluster {given.name!r}")
        case "status":
            cluster = NodeCluster(layout)
            running = cluster.sandbox.pid is not None and cluster.ready()
            print(f"cluster {given.name!r} {'runs' if running else 'does not run'}: {layout.root}")
            if not running:
                return 1
            print(cluster.kubectl("get", "nodes,pods", "--all-namespaces", "--output=wide"))
        case "kubectl":
            print(NodeCluster(layout).kubectl(*given.rest, check=False), end="")
        case "shell":
            shell = NodeCluster(layout).command([os.environ.get("SHELL", "/bin/sh")])
            os.environ["KUBECONFIG"] = str(layout.kubeconfig)
            os.execvp(shell[0], shell)
    return 0


def _up(given: argparse.Namespace) -> None:
    phases = Phases()
    images = (recipes.engine_image(), recipes.redis_image())
    cluster = start(Options(name=given.name, keep=given.keep, images=images), phases)
    print(f"up after {sum(phases.seconds.values()):.1f} s: {cluster.kubeconfig}")
    if given.keep:
        return
    with cluster:
        print("Ctrl-C ends it")
        try:
            sys.stdin.read()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
