"""`pointsman explain`: where would this request go, and why."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pointsman_serving.cli.errors import UsageError

_TIMEOUT_SECONDS = 10.0
_TERMS = (
    ("quality", "quality", "{:.3f}"),
    ("predicted_ttft_seconds", "TTFT s", "{:.3f}"),
    ("predicted_latency_seconds", "all s", "{:.2f}"),
    ("predicted_cached_tokens", "cached", "{:d}"),
    ("predicted_cost_dollars", "cost $", "{:.6f}"),
    ("in_flight", "busy", "{:d}"),
    ("score", "score", "{:.4f}"),
)


def explain(
    prompt: Annotated[
        str | None, typer.Argument(help="The user's message; absent: see --body.")
    ] = None,
    model: Annotated[str, typer.Option(help="The model name to ask for.")] = "",
    body: Annotated[
        Path | None, typer.Option(help="A JSON file with a whole chat request; - reads stdin.")
    ] = None,
    url: Annotated[str, typer.Option(help="The gateway's address.")] = "http://127.0.0.1:8080",
    session: Annotated[str, typer.Option(help="Sent as x-session-id.")] = "",
    header: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a request header; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Show every candidate (pool, replica) for a request with its terms, and the winner."""
    request = _request_body(prompt, model, body)
    headers = dict(map(_header, header or ()))
    if session:
        headers["x-session-id"] = session
    answer = fetch_explanation(url, request, headers)
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return
    Console().print(explanation_table(answer), answer["reason"], sep="\n")


def fetch_explanation(
    url: str, body: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Ask a gateway's ``/v1/route/explain``.

    Raises:
        UsageError: the gateway cannot be reached or refuses the request.
    """
    request = urllib.request.Request(
        f"{url.rstrip('/').removesuffix('/v1')}/v1/route/explain",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer
    except urllib.error.HTTPError as error:
        raise UsageError(f"{url} answered {error.code}: {_message(error.read())}") from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{url} cannot be asked ({error}). Is a gateway running there? "
            "Start one with `pointsman up` or name its address with --url."
        ) from error


def explanation_table(answer: Mapping[str, Any]) -> Table:
    """The candidates of an explanation, the winner marked and the rejected ones named below."""
    winner = answer.get("winner") or {}
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.title = f"policy {answer.get('policy') or '-'}, rule {answer.get('rule') or '-'}"
    table.title_justify = table.caption_justify = "left"
    table.add_column("")
    table.add_column("pool/replica", no_wrap=True)
    for _, title, _ in _TERMS:
        table.add_column(title, justify="right", no_wrap=True)
    rejected = []
    for candidate in answer["candidates"]:
        key = (candidate["pool"], candidate["replica"])
        chosen = key == (winner.get("pool"), winner.get("replica"))
        reason = candidate.get("rejected")
        if reason:
            rejected.append(f"{'/'.join(key)}: {reason}")
        cells = [form.format(candidate[term]) for term, _, form in _TERMS]
        style = "bold green" if chosen else "dim" if reason else ""
        table.add_row("→" if chosen else "", "/".join(key), *cells, style=style)
    if rejected:
        table.caption = "rejected: " + ", ".join(rejected)
    return table


def _request_body(prompt: str | None, model: str, path: Path | None) -> dict[str, object]:
    if (prompt is None) == (path is None):
        raise UsageError("Give either a prompt or --body FILE, and not both.")
    if path is None:
        if not model:
            raise UsageError(
                "--model is missing: name one that GET /v1/models lists, such as assistant."
            )
        return {"model": model, "messages": [{"role": "user", "content": prompt}]}
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
        parsed = json.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"--body {path} cannot be read as JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise UsageError(f"--body {path} holds a {type(parsed).__name__}, not a JSON object.")
    return {**parsed, "model": model} if model else parsed


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals):
        raise UsageError(f"--header {text!r} is not of the form NAME=VALUE, such as x-task=code.")
    return name.strip(), value.strip()


def _message(document: bytes) -> str:
    try:
        return str(json.loads(document)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return document[:200].decode(errors="replace")
