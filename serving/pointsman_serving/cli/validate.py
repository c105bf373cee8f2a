"""``pointsman validate``: files against the contract, without starting anything."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from pointsman_api.manifests import ManifestError, ManifestErrors, Manifests, load_manifests
from pointsman_serving.cli.plan import argument_errors


def validate(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Files, or folders of YAML files.", show_default=False),
    ],
) -> None:
    """Check ModelPools and RoutePolicies; exit code 2 if anything in them is wrong.

    Unknown fields are errors here, where Kubernetes would drop them silently.
    """
    try:
        manifests = load_manifests(paths)
        if errors := argument_errors(manifests):
            raise ManifestErrors(errors)
    except ManifestErrors as failure:
        print_errors(failure, Console(stderr=True))
        raise typer.Exit(2) from None
    console = Console()
    for skipped in manifests.skipped:
        console.print(Text(f"not checked: {skipped}", style="yellow"), soft_wrap=True)
    console.print(Text(f"{summary(manifests)}: valid", style="green"), soft_wrap=True)


def print_errors(failure: ManifestErrors, console: Console) -> None:
    """Show every error under its file, and how many there are."""
    for path, errors in groupby(failure.errors, key=lambda error: error.path):
        console.print(Text(str(path), style="bold"), soft_wrap=True)
        for error in errors:
            console.print(_error_text(error), soft_wrap=True)
    console.print(Text(_count(len(failure.errors), "error"), style="bold red"), soft_wrap=True)


def summary(manifests: Manifests) -> str:
    """Such as ``2 ModelPools, 1 RoutePolicy``."""
    pools = _count(len(manifests.pools), "ModelPool")
    return f"{pools}, {_count(len(manifests.policies), 'RoutePolicy', 'RoutePolicies')}"


def _error_text(error: ManifestError) -> Text:
    text = Text(f"  line {error.line}: ", style="default")
    if error.item:
        text.append(f"{error.item}: ", style="dim")
    if error.field:
        text.append(f"{error.field} ", style="cyan")
    if error.value:
        text.append(f"{error.value} ", style="magenta")
    text.append(error.message)
    if error.allowed:
        text.append(f"\n    allowed: {error.allowed}")
    if error.next_step:
        text.append(f"\n    {error.next_step}", style="bold")
    return text


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"
