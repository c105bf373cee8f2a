"""The processes of a replica with several hosts, as actors of Ray.

Serve makes a placement group with one bundle a host and puts the replica into the first. The
replica puts a member into each other one. Ray ends the members with the replica; the other way
round the replica ends itself, and Serve makes the whole of it anew. Its places are free at once:
a replica that can answer nothing would keep them while it drains.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pointsman_api.modelpool import EngineType
from pointsman_serving.engines.group import GroupPlace, GroupWatch, MemberLostError
from pointsman_serving.engines.open_requests import OpenRequests, open_requests_folder
from pointsman_serving.engines.options import ReplicaOptions

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger("ray.serve")

_EXIT_STATUS = 70
_CALLS_AT_ONCE = 4
_CONNECT_SECONDS = 10.0


class GroupMember:
    """What runs on each host of a replica but the first."""

    def __init__(self, args: dict[str, Any]) -> None:
        """Take the replica's options; nothing is loaded yet."""
        self._options = ReplicaOptions.from_args(args)
        self._requests = OpenRequests(open_requests_folder(os.environ))
        self._failure = ""

    def listen(self) -> tuple[str, int]:
        """Take one connection, and keep it as long as this process lives.

        Returns:
            Where to connect: the address of this host, and a port.
        """
        host = str(ray.util.get_node_ip_address())
        listener = socket.create_server((host, 0), family=_family(host), backlog=1)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return host, int(listener.getsockname()[1])

    def start(self, place: dict[str, Any]) -> None:
        """Begin with this host's part of the engine; a Simulated one has none."""
        if self._options.engine == EngineType.VLLM:
            arguments = (self._options, GroupPlace(**place))
            threading.Thread(target=self._run_vllm, args=arguments, daemon=True).start()

    def beat(self, *, busy: bool) -> str:
        """Say why the engine's part here has failed; empty where it has not.

        The pod's end is held back as long as the replica is busy.
        """
        if busy and not self._requests.count:
            self._requests.began()
        elif self._requests.count and not busy:
            self._requests.ended()
        return self._failure

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            self._line, _ = listener.accept()

    def _run_vllm(self, options: ReplicaOptions, place: GroupPlace) -> None:
        from pointsman_serving.engines.vllm import run_vllm_member

        try:
            run_vllm_member(options, place)
            self._failure = "a process of vLLM has ended; see the log of the member"
        except BaseException as error:
            _LOG.exception("this host's part of vLLM has failed")
            self._failure = f"{type(error).__name__}: {error}"


class RayMember:
    """A :class:`~pointsman_serving.engines.group.Member` that Ray runs.

    Ray takes ten seconds and more to give up a node that is gone at once. The end of a connection
    to the member's process tells it in no time.

    Args:
        line: the connection; nothing is said on it.
    """

    def __init__(self, actor: Any, name: str, line: socket.socket) -> None:
        self._actor = actor
        self._name = name
        self._line = line
        self._line.setblocking(False)
        self._asked: Any = None

    @property
    def name(self) -> str:
        """Which one, and where."""
        return self._name

    def beat(self, *, busy: bool) -> None:
        """Ask for a sign of life, unless one is being waited for."""
        if self._asked is None:
            self._asked = self._actor.beat.remote(busy=busy)

    def heard(self) -> str | None:
        """What it has said since the last call."""
        if _has_ended(self._line):
            raise MemberLostError("its process has ended")
        if self._asked is None:
            return None
        try:
            said = str(ray.get(self._asked, timeout=0))
        except GetTimeoutError:
            return None
        except ActorUnavailableError:
            # The connection broke: whether it is dead is told by the next question.
            said = None
        except RayError as error:
            raise MemberLostError(str(error).strip().splitlines()[0]) from error
        self._asked = None
        return said


class RayGroup:
    """The members of this process's replica.

    Args:
        options: of the replica.
        busy: whether the replica has open requests.
        lost: called when a member is lost; by default this process ends.
    """

    def __init__(
        self,
        options: ReplicaOptions,
        *,
        busy: Callable[[], bool],
        lost: Callable[[str], None] | None = None,
    ) -> None:
        self._options = options
        self._busy = busy
        self._lost = lost or end_process
        self._actors: list[Any] = []

    async def start(self) -> GroupPlace:
        """Start a member on every other host and watch over it.

        Returns:
            The place of this process.

        Raises:
            ValueError: Serve has placed the replica otherwise than its options say.
            RayError: a member did not start.
            OSError: a member's host cannot be reached.
        """
        return await asyncio.to_thread(self._start)

    def _start(self) -> GroupPlace:
        group = ray.util.get_current_placement_group()
        bundles = [] if group is None else group.bundle_specs
        hosts = self._options.hosts
        if group is None or len(bundles) != hosts:
            raise ValueError(
                f"the replica spreads over {hosts} hosts and Ray has placed it on "
                f"{len(bundles) or 'none'}: deploy it with placement_group_bundles for each host"
            )
        args = self._options.to_args()
        self._actors = [
            _member_class(group, index, bundles[index]).remote(args) for index in range(1, hosts)
        ]
        places: list[tuple[str, int]] = ray.get([each.listen.remote() for each in self._actors])
        members = [
            RayMember(
                actor,
                f"member {rank} of {hosts - 1} on {place[0]}",
                socket.create_connection(place, _CONNECT_SECONDS),
            )
            for rank, (actor, place) in enumerate(zip(self._actors, places, strict=True), 1)
        ]
        GroupWatch(members, busy=self._busy, lost=self._lost).start()
        place = GroupPlace(
            rank=0,
            hosts=hosts,
            leader_host=str(ray.util.get_node_ip_address()),
            leader_port=_free_port(),
        )
        for rank, actor in enumerate(self._actors, 1):
            actor.start.remote(asdict(place) | {"rank": rank})
        _LOG.info(
            "the replica spreads over this host and %s", ", ".join(host for host, _ in places)
        )
        return place


def end_process(reason: str) -> None:
    """End this process at once, and with it the replica: one that lacks a part answers nothing."""
    _LOG.error("the replica ends: %s", reason)
    for handler in (*_LOG.handlers, *logging.getLogger().handlers):
        handler.flush()
    sys.stderr.flush()
    os._exit(_EXIT_STATUS)


def _member_class(group: PlacementGroup, index: int, bundle: dict[str, float]) -> Any:
    """The actor class of the member in one bundle, all of which it takes."""
    others = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU")}
    return ray.remote(GroupMember).options(
        num_cpus=bundle.get("CPU", 0),
        num_gpus=bundle.get("GPU", 0),
        resources=others,
        max_restarts=0,
        max_concurrency=_CALLS_AT_ONCE,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=index
        ),
    )


def _has_ended(line: socket.socket) -> bool:
    """Whether the other end of a silent connection, which does not block, is gone."""
    try:
        return not line.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
