"""Reading a recorded trace line by line, so that what is wrong in it can be found."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class TraceError(ValueError):
    """A trace cannot be read: says which file, line and field, what is there and what should be.

    Args:
        line: from 1; 0: the file as a whole.
        field: empty: the line as a whole.
    """

    def __init__(self, path: Path, line: int, field: str, problem: str) -> None:
        self.path = path
        self.line = line
        self.field = field
        place = f"{path}"
        if line:
            place += f", line {line}"
        if field:
            place += f", field {field!r}"
        super().__init__(f"{place}: {problem}")


def read_lines(path: Path) -> list[str]:
    """The lines of a trace, without their ends.

    Raises:
        TraceError: the file cannot be read or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); give the path of a trace"
        raise TraceError(path, 0, "", problem) from error
    except UnicodeDecodeError as error:
        raise TraceError(path, 0, "", f"is no text ({error}); give a trace in UTF-8") from error
    # Not splitlines(): JSON strings may hold characters that it takes for the end of a line.
    lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    if not text.strip():
        raise TraceError(path, 0, "", "is empty; give a trace with a request at least")
    return lines
