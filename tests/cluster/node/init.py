"""The first process of a node cluster's namespaces.

It reaps orphans. When it ends, the kernel ends every process inside and drops their mounts and
their network: so a run that is killed leaves no process behind. Not part of a package on purpose:
it is started by its path, before anything else is there.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time


def main(keep: bool) -> None:
    """Stay until the starter's end of the pipe on standard input closes; ``keep``: for ever."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        if keep:
            time.sleep(0.5)
        elif select.select([0], [], [], 0.5)[0] and not os.read(0, 4096):
            return


if __name__ == "__main__":
    main("--keep" in sys.argv[1:])
