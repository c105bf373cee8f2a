"""Holding back a pod's end until its requests are done: the preStop hook of workers and head.

``python -m pointsman_serving.engines.drain --timeout 600`` in a worker waits until the gateways
have noticed that the pod ends, and then until no replica in it has open requests. With ``--head``
it waits until no other node is left in the Ray cluster, since its workers need the head until
their own requests are done. Only the standard library, so that it starts at once.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pointsman_serving.engines.open_requests import busy_processes, open_requests_folder

_LOOK_SECONDS = 0.5
_DASHBOARD = ("127.0.0.1", 8265)
_ASK_SECONDS = 5.0
# A head whose dashboard is dead has nobody that could tell when the workers are gone.
_UNANSWERED_SECONDS = 15.0
_DEFAULT_TOKEN_PATH = "~/.ray/auth_token"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 whatever becomes of the requests, for the pod ends in any case."""
    parser = argparse.ArgumentParser(prog="pointsman_serving.engines.drain", description=__doc__)
    parser.add_argument("--timeout", type=float, required=True, help="Seconds to wait at most.")
    parser.add_argument("--settle", type=float, default=5.0, help="Seconds to wait at least.")
    parser.add_argument("--head", action="store_true", help="Wait for the other nodes to leave.")
    options = parser.parse_args(arguments)
    until = time.monotonic() + options.timeout
    if options.head:
        left = wait_for_workers(lambda: other_nodes(os.environ), until=until)
    else:
        folder = open_requests_folder(os.environ)
        left = wait_for_requests(folder, settle_seconds=options.settle, until=until)
    print(f"drained: {left}" if left else "drained", flush=True)


def wait_for_requests(
    folder: Path,
    *,
    settle_seconds: float,
    until: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Wait until no replica has open requests at two looks in a row.

    Args:
        settle_seconds: before the first look: gateways may send until they have noticed.
        until: the end of patience, by ``clock``.

    Returns:
        What was left; empty where nothing was.
    """
    sleep(max(0.0, min(settle_seconds, until - clock())))
    quiet = 0
    while True:
        busy = busy_processes(folder)
        quiet = 0 if busy else quiet + 1
        if quiet == 2:
            return ""
        if clock() >= until:
            return f"the time is over, with open requests in {len(busy)} replicas" if busy else ""
        sleep(max(0.0, min(_LOOK_SECONDS, until - clock())))


def wait_for_workers(
    nodes: Callable[[], int],
    *,
    until: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Wait until the head is the last node of its cluster.

    Args:
        nodes: how many others live; raises OSError or ValueError where nobody can tell.

    Returns:
        Why it did not wait for longer; empty where no other node is left.
    """
    answered_at = clock()
    while True:
        try:
            count = nodes()
            answered_at = clock()
            if count == 0:
                return ""
            left = f"the time is over, with {count} other nodes"
        except (OSError, ValueError) as error:
            left = f"the dashboard cannot be asked for the other nodes ({error})"
            if clock() - answered_at >= _UNANSWERED_SECONDS:
                return left
        if clock() >= until:
            return left
        sleep(max(0.0, min(_LOOK_SECONDS, until - clock())))


def other_nodes(environment: Mapping[str, str], *, address: tuple[str, int] = _DASHBOARD) -> int:
    """How many nodes of the Ray cluster live beside its head, by the head's dashboard.

    Raises:
        OSError: nobody answers.
        ValueError: the answer is not a list of nodes.
    """
    # Loaded late: a worker's hook needs neither.
    import http.client
    import json

    connection = http.client.HTTPConnection(*address, timeout=_ASK_SECONDS)
    token = ray_token(environment)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request("GET", "/nodes?view=summary&nocache=1", headers=headers)
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise ValueError(f"no HTTP: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(f"it answers {response.status}")
    try:
        raylets = [node["raylet"] for node in json.loads(body)["data"]["summary"]]
        alive = [each["isHeadNode"] for each in raylets if each["state"] == "ALIVE"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the list of nodes lacks {error}") from error
    if True not in alive:
        # A dashboard that has just started knows nobody yet.
        raise ValueError("the list of nodes lacks the head itself")
    return alive.count(False)


def ray_token(environment: Mapping[str, str]) -> str:
    """Ray's own token, from where Ray itself looks for it; empty where there is none."""
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or _DEFAULT_TOKEN_PATH).expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
