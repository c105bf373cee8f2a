"""Everything fails, and no stream at the surviving gateway shows it.

    python -m tests.chaos.run [--seed 7] [--out benchmarks/results/chaos.json]

Simulated engines and two gateways, each a process of its own; streams over real sockets, each
with a prompt of its own whose answer is known without asking. Every two seconds a replica is
killed, stopped, hung, reset or cut off the network; half-way one of the gateways is killed, and
the one that replaces it is later told to end. Exit code 1 and a line for each flaw where a
stream at a gateway that was not killed is not exactly the one that an unbroken engine gives.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.provenance import provenance
from tests.chaos.report import breaches_of, document_of, table_of
from tests.chaos.storm import Plan, Storm

PLAN = Plan()
"""What ``make chaos`` runs."""


def main() -> int:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=PLAN.seed)
    parser.add_argument("--engines", type=int, default=PLAN.engines)
    parser.add_argument("--streams", type=int, default=PLAN.streams, help="at the survivor")
    parser.add_argument("--others", type=int, default=PLAN.others, help="at the other gateway")
    parser.add_argument("--seconds", type=float, default=PLAN.seconds, help="of faults")
    parser.add_argument("--calm", action="store_true", help="no faults: what the machine can do")
    parser.add_argument("--logs", type=Path, help="where the gateways' logs go")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    plan = Plan(
        seed=given.seed,
        engines=given.engines,
        streams=given.streams,
        others=given.others,
        seconds=given.seconds,
        calm=given.calm,
    )
    with tempfile.TemporaryDirectory() as folder:
        storm = Storm(
            plan, logs=given.logs or Path(folder), say=lambda line: print(line, flush=True)
        )
        outcome = uvloop.run(storm.run())
    print("\n".join(table_of(plan, outcome)))
    breaches = breaches_of(plan, outcome)
    for breach in breaches[:50]:
        print(f"✗ {breach}", file=sys.stderr)
    if given.out is not None:
        document = {**provenance("uvicorn", "httptools"), **document_of(plan, outcome, breaches)}
        given.out.write_text(json.dumps(document, indent=2) + "\n")
    print("nothing was lost" if not breaches else f"{len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
