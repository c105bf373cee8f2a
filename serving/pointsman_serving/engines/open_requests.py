"""Which replicas on this host have open requests, told by files.

The hook that holds back a pod's end (``engines.drain``) runs in a process of its own. Each replica
has a file there, named after its process, whose only byte says whether it has open requests: one
small write when the first begins, one when the last ends. Nothing here needs more than the
standard library.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pointsman_serving.engines.process_start import process_start

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOG = logging.getLogger("ray.serve")

RUN_DIR_VARIABLE: Final = "POINTSMAN_RUN_DIR"
_DEFAULT_RUN_DIR = "/tmp/pointsman"

_BUSY, _IDLE = b"1", b"0"


def open_requests_folder(environment: Mapping[str, str]) -> Path:
    """Where the replicas of this pod tell whether they have open requests."""
    return Path(environment.get(RUN_DIR_VARIABLE) or _DEFAULT_RUN_DIR) / "open"


class OpenRequests:
    """The open requests of this process; on its event loop only.

    Args:
        folder: from :func:`open_requests_folder`; made when it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = 0
        self._file: int | None = None
        self._failed = False

    @property
    def count(self) -> int:
        """How many are open."""
        return self._open

    def began(self) -> None:
        """A request has begun."""
        self._open += 1
        if self._open == 1:
            self._tell(_BUSY)

    def ended(self) -> None:
        """A request has ended."""
        self._open -= 1
        if self._open == 0:
            self._tell(_IDLE)

    def close(self) -> None:
        """Take the file away."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        pid = os.getpid()
        return self._folder / f"{pid}-{process_start(pid)}"

    def _tell(self, state: bytes) -> None:
        if self._failed:
            return
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                _remove_dead(self._folder)
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.pwrite(self._file, state, 0)
        except OSError as error:
            self._failed = True
            _LOG.warning(
                "open requests cannot be told in %s (%s): when this pod ends, they are not waited "
                "for; set %s to a folder that can be written",
                self._folder,
                error,
                RUN_DIR_VARIABLE,
            )


def busy_processes(folder: Path) -> list[int]:
    """The replicas that live and have open requests, by process id."""
    return [pid for pid, file in _living(folder) if _read(file) == _BUSY]


def _living(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for file in _files(folder):
        pid, _, start = file.name.partition("-")
        # Ids are used again, and a killed replica leaves its file.
        if pid.isdecimal() and process_start(int(pid)) == start:
            found.append((int(pid), file))
    return found


def _remove_dead(folder: Path) -> None:
    living = {file for _, file in _living(folder)}
    for file in _files(folder):
        if file not in living:
            file.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return _IDLE
