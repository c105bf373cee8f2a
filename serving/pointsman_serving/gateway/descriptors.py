"""The file descriptors and ports that this process may have, and the signs that none is left.

A gateway that lacks them can connect to nobody: that says nothing of the replicas.
"""

from __future__ import annotations

import errno
import resource
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_LACKS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)


def lacking(error: BaseException) -> bool:
    """Whether a connection failed because this machine has no descriptor, port or memory left."""
    return isinstance(error, OSError) and error.errno in _LACKS


def raise_limit() -> None:
    """Let this process open as many files as it may: each request takes two.

    Where the limit cannot be raised it stays, and the log says so.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning(
            "the limit of open files stays; raise it with ulimit -n for many clients",
            limit=soft,
            most=hard,
            cause=str(error),
        )
        return
    log.info("limit of open files raised", before=soft, now=hard)
