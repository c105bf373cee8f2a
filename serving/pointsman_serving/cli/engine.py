"""``pointsman engine``: engines that run on their own."""

from __future__ import annotations

import errno
import os
import socket
from typing import Annotated, NoReturn

import typer

from pointsman_serving.engines.front import ReplicaFront
from pointsman_serving.engines.simulated.options import describe_flags, parse_simulated_args

app = typer.Typer(
    name="engine", help="Engines that run on their own, without Ray.", no_args_is_help=True
)

_FLAGS_HELP = "\n\n".join(describe_flags().splitlines())


@app.callback()
def engine() -> None:
    """Engines that run on their own, without Ray."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=f"Flags of the engine, with their defaults:\n\n{_FLAGS_HELP}",
)
def simulated(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="The name that requests ask for.")] = "simulated",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free one.")
    ] = 9000,
) -> None:
    """Serve vLLM's API from a model of time: no weights, no GPU."""
    try:
        options = parse_simulated_args([f"--served-model-name={model}", *context.args])
        front = ReplicaFront.of(os.environ)
    except ValueError as failure:
        _stop(str(failure))
    listener = _listen(host, port)
    # Loaded late: `--help` and wrong flags need no server.
    import uvicorn

    from pointsman_serving.engines.simulated.app import simulated_app_of
    from pointsman_serving.engines.simulated.replica import simulated_identity

    address, bound_port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    typer.echo(f"Simulated engine {options.model_name!r} listens on http://{shown}:{bound_port}/v1")
    server = uvicorn.Server(
        uvicorn.Config(
            front.before(simulated_app_of(options), simulated_identity(model, context.args)),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=30,
        )
    )
    server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, or the end of the program with what is wrong and what helps."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as failure:
        if failure.errno == errno.EADDRINUSE:
            _stop(
                f"port {port} on {host} is in use: stop what listens there or give another --port"
            )
        _stop(
            f"cannot listen on {host} port {port} ({failure.strerror}): "
            "give another --host or --port"
        )


def _stop(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(code=2)
