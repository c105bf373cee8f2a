"""``pointsman model``: models that this machine can make without a download."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from pointsman_serving.models.cache import ModelNameError, model_directory
from pointsman_serving.models.catalog import ModelSourceError, packaged_model
from pointsman_serving.models.folder import ModelFolder, ModelFolderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pointsman_serving.models.upcycle import MoeShape

app = typer.Typer(
    name="model",
    help="Make model folders in the cache, without a download.",
    no_args_is_help=True,
)

_WRONG_INPUT = 2
_FAILED = 1


@app.callback()
def model() -> None:
    """Make model folders in the cache ($POINTSMAN_CACHE, else ~/.cache/pointsman)."""


@app.command("import")
def import_model(
    name: Annotated[str, typer.Argument(help="A model that comes inside a package: smollm2.")],
    force: Annotated[bool, typer.Option("--force", help="Make it again if it is there.")] = False,
) -> None:
    """Turn a packaged GGUF model into a Hugging Face folder, once."""
    console = Console()
    with _errors_shown():
        source = packaged_model(name)
        target = model_directory(name)
        # Numpy and gguf load slowly: a wrong name is answered without them.
        from pointsman_serving.models.gguf import import_packaged_model

        with _progress(console, f"importing {source.title}") as progress:
            folder = import_packaged_model(source, target, force=force, progress=progress)
    _say(console, folder, name)


@app.command("upcycle")
def upcycle(
    source: Annotated[str, typer.Argument(help="A dense model in the cache, such as smollm2.")],
    target: Annotated[str, typer.Argument(help="The name of the model to make.")],
    experts: Annotated[int, typer.Option(help="Experts a layer, 2 to 256.")] = 4,
    top_k: Annotated[int, typer.Option(help="Experts a token, 1 to --experts.")] = 2,
    shape: Annotated[
        str | None, typer.Option(help="mixtral or qwen3-moe; the one that fits if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    noise: Annotated[
        float, typer.Option(help="Noise on each expert, relative to its weights.")
    ] = 0.01,
    force: Annotated[bool, typer.Option("--force", help="Make it again if it is there.")] = False,
) -> None:
    """Make a mixture of experts of a dense model: its MLP copied, a random router over them."""
    console = Console()
    with _errors_shown():
        from pointsman_serving.models.upcycle import UpcycleOptions, upcycle_model

        options = UpcycleOptions(
            experts=experts, top_k=top_k, shape=_shape(shape), seed=seed, noise=noise
        )
        with _progress(console, f"upcycling {source}") as progress:
            folder = upcycle_model(
                model_directory(source),
                model_directory(target),
                options,
                force=force,
                progress=progress,
            )
    _say(console, folder, target)


def _shape(name: str | None) -> MoeShape | None:
    from pointsman_serving.models.upcycle import MoeShape, UpcycleError

    if name is None:
        return None
    try:
        return MoeShape(name)
    except ValueError:
        allowed = ", ".join(MoeShape)
        message = f"shape is {name!r}; allowed are {allowed}"
        raise UpcycleError(message) from None


@contextmanager
def _progress(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


def _say(console: Console, folder: ModelFolder, name: str) -> None:
    what = "is made" if folder.made else "was there already"
    console.print(f"{escape(name)} {what}: {escape(str(folder.path))}", soft_wrap=True)


@contextmanager
def _errors_shown() -> Iterator[None]:
    try:
        yield
    except (ModelNameError, ModelSourceError, ModelFolderError, ValueError) as error:
        _fail(error, _WRONG_INPUT)
    except ImportError as error:
        _fail(f"{error}; install the engine's packages with `make install`", _FAILED)


def _fail(message: object, code: int) -> None:
    Console(stderr=True).print(f"[red]error:[/red] {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(code)
