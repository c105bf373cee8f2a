"""What a command says and how it exits when it was asked for something it cannot do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class UsageError(Exception):
    """The user can mend it: shown as one message, exit code 2, nothing was started."""


class RunError(Exception):
    """Something failed while the command ran: shown as one message, exit code 1."""


@contextmanager
def shown_errors() -> Iterator[None]:
    """Turn the errors of this module into one message on stderr and their exit code."""
    try:
        yield
    except (UsageError, RunError) as error:
        text = f"[red]error:[/red] {escape(str(error))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
