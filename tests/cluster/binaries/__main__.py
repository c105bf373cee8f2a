"""``python -m tests.cluster.binaries [NAMES…]``: make programs of the test cluster."""

from __future__ import annotations

import sys

from tests.cluster.binaries import PROGRAMS, BinaryMissingError, binary


def main(names: list[str]) -> int:
    """Print the path of each named program, of all when none is named."""
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown:
        print(f"No such program: {', '.join(unknown)}. There are {', '.join(PROGRAMS)}")
        return 2
    for name in names or PROGRAMS:
        try:
            print(name, binary(name), flush=True)
        except BinaryMissingError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
