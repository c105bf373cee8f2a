"""The engine VLLM: AsyncLLM in the replica's process, with vLLM's own OpenAI application."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointsman_api.route_table import PrefixIndex
from pointsman_serving.engines.continuation_gate import ContinuationGate
from pointsman_serving.engines.engine import EngineFailedError
from pointsman_serving.engines.kv_events import (
    KvEventsHeader,
    bind_to_this_node,
    kv_events_argument,
    kv_events_value,
)
from pointsman_serving.engines.load_header import LoadHeader

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence

    from starlette.types import ASGIApp

    from pointsman_serving.engines.group import GroupPlace
    from pointsman_serving.engines.options import ReplicaOptions

_LOG = logging.getLogger(__name__)

_QUIET_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

_CPU_ENVIRONMENT = {
    # The engine core computes in its own process instead of one more: a start takes 11 s of
    # processor time less, and a replica 0.6 GB less.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # vLLM pins its threads to the first cores it finds, and so does every other replica of the
    # machine: all would share those cores while the others idle.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Threads that spin while they wait take the cores from the other replicas.
    "OMP_WAIT_POLICY": "PASSIVE",
}


class VllmEngine:
    """An :class:`~pointsman_serving.engines.engine.Engine` around AsyncLLM."""

    def __init__(
        self, client: Any, app: ASGIApp, read_load: Callable[[], Mapping[str, float]]
    ) -> None:
        self._client = client
        self._app: ASGIApp = LoadHeader(app, read_load)
        ports = kv_events_value(client.get_kv_event_sources())
        if ports is not None:
            self._app = KvEventsHeader(self._app, ports)

    @property
    def app(self) -> ASGIApp:
        """vLLM's own FastAPI application, with the load header on every answer, and where its
        KV events are."""
        return self._app

    async def check_health(self) -> None:
        """Raises EngineFailedError when the engine core is dead."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._client.check_health()
        except EngineDeadError as error:
            raise EngineFailedError(
                "vLLM's engine core is dead: see the replica's log for the reason"
            ) from error

    async def close(self) -> None:
        """End the engine core's process."""
        self._client.shutdown()


async def start_vllm(options: ReplicaOptions, place: GroupPlace | None = None) -> VllmEngine:
    """Load the model; half a minute for a small one, minutes for a large one.

    The engine belongs to the running event loop, which is blocked while it loads.

    Args:
        place: of this process in its group, where the replica has several hosts.

    Raises:
        ValueError: vLLM does not take an argument.
        RuntimeError: the engine core did not start; its own log says why.
    """
    _prepare_environment(options.model_path)
    if place is not None or options.prefix_index == PrefixIndex.EVENTS:
        bind_to_this_node()

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.usage.usage_lib import UsageContext

    from pointsman_serving.engines.vllm_continuation import (
        ContinuingAsyncLLM,
        unsupported_reason,
    )

    args = parse_vllm_arguments([*vllm_arguments(options), *place_arguments(place)])
    read_load, reader = _load_reader()
    client = ContinuingAsyncLLM.from_vllm_config(
        vllm_config=AsyncEngineArgs.from_cli_args(args).create_engine_config(
            usage_context=UsageContext.OPENAI_API_SERVER
        ),
        usage_context=UsageContext.OPENAI_API_SERVER,
        stat_loggers=[reader],
        enable_log_requests=args.enable_log_requests,
        disable_log_stats=args.disable_log_stats,
    )
    try:
        tasks = await client.get_supported_tasks()
        app = build_app(args, tasks, client.model_config)
        await init_app_state(client, app.state, args, tasks)
    except BaseException:
        client.shutdown()
        raise
    _LOG.info("vLLM serves %s for the tasks %s", options.served_model_name, ", ".join(tasks))
    reason = unsupported_reason()
    if reason is not None:
        _LOG.warning("answers of other replicas cannot be continued here: %s", reason)
        client.unsupported = f"this replica's version of vLLM cannot continue answers: {reason}"
    gate = ContinuationGate(app, unsupported=client.unsupported)
    return VllmEngine(client, gate, read_load)


def vllm_arguments(options: ReplicaOptions) -> list[str]:
    """The engine's command line: what the pool's fields say, then its own arguments."""
    derived = [
        f"--model={options.model_path}",
        f"--served-model-name={options.served_model_name}",
        f"--max-num-seqs={options.max_sequences}",
        "--enable-prefix-caching",
        # usage.prompt_tokens_details.cached_tokens: what a router learns the true hits from.
        "--enable-prompt-tokens-details",
    ]
    if options.prefix_index == PrefixIndex.EVENTS:
        derived.append(kv_events_argument())
    if options.context_tokens is not None:
        derived.append(f"--max-model-len={options.context_tokens}")
    return [*derived, *options.arguments]


def place_arguments(place: GroupPlace | None) -> list[str]:
    """What the command line of an engine says of its place among several hosts."""
    if place is None:
        return []
    return [
        # Each host's process starts the workers of its own GPUs.
        "--distributed-executor-backend=mp",
        f"--nnodes={place.hosts}",
        f"--node-rank={place.rank}",
        f"--master-addr={place.leader_host}",
        f"--master-port={place.leader_port}",
    ]


def run_vllm_member(options: ReplicaOptions, place: GroupPlace) -> None:
    """Run the workers of a host that answers no requests, until one of them ends.

    They end with this process.

    Raises:
        ValueError: vLLM does not take an argument.
        Exception: the workers did not start.
    """
    _prepare_environment(options.model_path)
    bind_to_this_node()

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    args = parse_vllm_arguments([*vllm_arguments(options), *place_arguments(place)])
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
        usage_context=UsageContext.OPENAI_API_SERVER, headless=True
    )
    executor = MultiprocExecutor(config, monitor_workers=False)
    executor.start_worker_monitor(inline=True)


def parse_vllm_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse a command line with vLLM's own parser.

    Raises:
        ValueError: vLLM does not know an argument or its value.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        """Raises where the original ends the process."""

        def error(self, message: str) -> Any:
            raise ValueError(
                f"vLLM does not take the engine's arguments: {message}; correct "
                "spec.backend.rayServe.engine.args of the pool"
            )

    parser = make_arg_parser(Parser(prog="vllm", add_help=False))
    args: Namespace = parser.parse_args(list(arguments))
    validate_parsed_serve_args(args)
    return args


def _prepare_environment(model_path: str) -> None:
    """Set what vLLM reads from the environment; what the pool itself sets stays."""
    defaults = dict(_QUIET_ENVIRONMENT)
    if Path(model_path).is_dir():
        defaults |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)

    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        for name, value in _CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


def _load_reader() -> tuple[Callable[[], Mapping[str, float]], Any]:
    """What reads the engine's load now, and the stat logger class that keeps it."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    latest: dict[int, Any] = {}

    class LoadReader(StatLoggerBase):
        """Keeps the last scheduler statistics of each engine core."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            """Nothing is configured."""

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
        ) -> None:
            """Take over the load of the iteration that has ended."""
            if scheduler_stats is not None:
                latest[engine_idx] = scheduler_stats

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

    def read_load() -> Mapping[str, float]:
        cores = latest.values()
        return {
            "num_requests_waiting": float(sum(core.num_waiting_reqs for core in cores)),
            "num_requests_running": float(sum(core.num_running_reqs for core in cores)),
            "kv_cache_usage_perc": max((float(core.kv_cache_usage) for core in cores), default=0.0),
        }

    return read_load, LoadReader
