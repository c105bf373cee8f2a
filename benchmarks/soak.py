"""Memory stays flat under ten million prompts that never repeat, of 100,000 tenants.

    python -m benchmarks.soak [--requests 10000000] [--sockets 200000]

Two parts: what a gateway remembers, in virtual time as fast as it goes (``soak_core``), and a
gateway process over real sockets (``soak_sockets``). Exit code 1 where the resident memory
still grows in the last half, exceeds its cap, or a counter does not return to zero.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.line_chart import line_chart
from benchmarks.provenance import provenance
from benchmarks.resident import Sample, growth_percent
from benchmarks.soak_core import CoreSoak, NotZeroError
from benchmarks.soak_sockets import SocketsSoak

CORE_CAP_MIB = 256
SOCKETS_CAP_MIB = 256
"""Resident memory that is never exceeded."""
MOST_GROWTH_PERCENT = 3.0
READINGS = 200


def flaws_of(samples: Sequence[Sample], *, cap_mib: float, what: str) -> list[str]:
    """What the readings break of the promise."""
    flaws = []
    growth = growth_percent(list(samples))
    if growth > MOST_GROWTH_PERCENT:
        flaws.append(
            f"{what}: memory grew by {growth:.1f}% in the last half, "
            f"allowed {MOST_GROWTH_PERCENT:g}%"
        )
    most = max(sample.resident_mib for sample in samples)
    if most > cap_mib:
        flaws.append(f"{what}: {most:.0f} MiB resident at most, allowed {cap_mib} MiB")
    return flaws


def summary_of(samples: Sequence[Sample]) -> dict[str, object]:
    """The readings in a few numbers, and fifty of them."""
    step = max(1, len(samples) // 50)
    return {
        "requests": samples[-1].requests,
        "seconds": round(samples[-1].seconds, 1),
        "resident_mib_at_most": round(max(sample.resident_mib for sample in samples), 1),
        "growth_percent_in_the_last_half": round(growth_percent(list(samples)), 2),
        "readings": [
            {"requests": sample.requests, "resident_mib": round(sample.resident_mib, 1)}
            for sample in samples[::step]
        ],
    }


def say(sample: Sample) -> None:
    """One line now and then."""
    print(
        f"{sample.requests:>12,} requests {sample.seconds:>8.0f} s {sample.resident_mib:>8.1f} MiB",
        flush=True,
    )


def main() -> int:
    """Run both parts, draw, write and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000_000, help="in virtual time")
    parser.add_argument("--sockets", type=int, default=200_000, help="over real sockets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for soak.json and its plots")
    given = parser.parse_args()
    flaws: list[str] = []
    document: dict[str, object] = {"seed": given.seed}
    charts: dict[str, str] = {}
    if given.requests:
        print("What a gateway remembers, in virtual time:")
        try:
            core = CoreSoak(seed=given.seed).run(
                given.requests, every=max(1, given.requests // READINGS), say=say
            )
        except NotZeroError as error:
            print(f"✗ {error}", file=sys.stderr)
            return 1
        flaws += flaws_of(core.samples, cap_mib=CORE_CAP_MIB, what="in virtual time")
        document["virtual"] = {
            **summary_of(core.samples),
            "cap_mib": CORE_CAP_MIB,
            "outcomes": core.outcomes,
            "queued": core.queued,
            "conversations_remembered": core.conversations,
            "blocks_remembered_of_a_replica": core.cached_blocks,
        }
        charts["soak_virtual.svg"] = chart_of(core.samples, "Scheduler, metrics, queue")
    if given.sockets:
        print("A gateway process, over real sockets:")
        with tempfile.TemporaryDirectory() as folder:
            soak = SocketsSoak(seed=given.seed, folder=Path(folder))
            sockets = uvloop.run(
                soak.run(given.sockets, every=max(1, given.sockets // READINGS), say=say)
            )
        print(", ".join(f"{n} × {status}" for status, n in sorted(sockets.statuses.items())))
        flaws += flaws_of(sockets.samples, cap_mib=SOCKETS_CAP_MIB, what="over sockets")
        flaws += [
            f"over sockets: {series} is {value:g} when all has ended, expected 0"
            for series, value in sockets.leftovers.items()
        ]
        document["sockets"] = {
            **summary_of(sockets.samples),
            "cap_mib": SOCKETS_CAP_MIB,
            "statuses": sockets.statuses,
            "counted": sockets.counted,
            "leftovers": sockets.leftovers,
        }
        charts["soak_sockets.svg"] = chart_of(sockets.samples, "A gateway process")
    for flaw in flaws:
        print(f"✗ {flaw}", file=sys.stderr)
    if given.out is not None:
        written = {**provenance("uvicorn", "prometheus-client"), **document, "flaws": flaws}
        (given.out / "soak.json").write_text(json.dumps(written, indent=2) + "\n")
        for name, chart in charts.items():
            (given.out / name).write_text(chart)
    print("flat" if not flaws else f"{len(flaws)} flaws")
    return 1 if flaws else 0


def chart_of(samples: Sequence[Sample], what: str) -> str:
    """Memory over requests."""
    return line_chart(
        [(sample.requests, sample.resident_mib) for sample in samples],
        title=f"{what}: memory under prompts that never repeat",
        across="requests",
        up="resident memory, MiB",
    )


if __name__ == "__main__":
    sys.exit(main())
