"""The 25 pains that broke shipping peers, and the tests that keep them away.

    python -m tests.pains [--list] [pytest arguments]

A test bears ``@pytest.mark.pain_N`` for each pain that it would fail on; what is printed is
collected, never typed. ``--list`` only collects. The exit code is not 0 where such a test fails,
or where a pain has neither a test nor a part named that is still to be built.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class Pain:
    """One way in which a peer failed its users."""

    text: str
    """What happened, in a line."""
    source: str
    """Who had it, with the thread that tells of it."""
    missing: str = ""
    """The part that is still to be built before all of it is kept away; empty: none."""


PAINS: dict[int, Pain] = {
    1: Pain(
        text="terminating pods still get traffic on a roll-out",
        source="production-stack#601",
    ),
    2: Pain(
        text="a DELETED event missed in a watch gap: 22 h of failures with a green health check",
        source="production-stack#1091",
    ),
    3: Pain(
        text="thousands of 503 while no worker is healthy, instead of a queue",
        source="vllm router#140",
    ),
    4: Pain(
        text="the prefix tree has no bound: out of memory",
        source="production-stack#687, dynamo#10774",
    ),
    5: Pain(
        text="in-flight counters leak: killed for memory fourteen times",
        source="production-stack PR#1072",
    ),
    6: Pain(
        text="bounded-load hashing collapses under a hot prefix",
        source="kubeai#447",
    ),
    7: Pain(
        text="a miss always picks the 'smallest' replica: death spiral",
        source="sglang#32983",
    ),
    8: Pain(
        text="prefix affinity silently never activates",
        source="production-stack PR#990",
    ),
    9: Pain(
        text="the index keeps the blocks of an engine that has restarted",
        source="llm-d-router#2853, aibrix#2287",
    ),
    10: Pain(
        text="router replicas share no state, or one active picker is the bottleneck",
        source="llm-d-router#1593",
        missing="load digests and credit leases among gateways",
    ),
    11: Pain(
        text="overhead of Ray Serve's streaming and ingress",
        source="ray#59681, NeMo Curator#1621",
    ),
    12: Pain(
        text="7 of 300 requests fail in an incremental upgrade",
        source="kuberay PR#3166",
        missing="a roll-out under load in `make test`; `make e2e` has it",
    ),
    13: Pain(
        text="min_replicas 0 is defeated; one broken model blocks the application of all",
        source="ray PR#63065",
    ),
    14: Pain(
        text="a restart of the picker truncates streams",
        source="kserve PR#5602",
    ),
    15: Pain(
        text="a second route object stops all status updates; Ready comes before activation",
        source="semantic-router#1908, #3811",
    ),
    16: Pain(
        text="the real errors of pods are hidden",
        source="kthena#1220",
    ),
    17: Pain(
        text="a field is removed from an object and its old limit stays in force",
        source="kthena#1505",
    ),
    18: Pain(
        text="a failure in mid-stream is a truncated 200",
        source="litellm#41777",
    ),
    19: Pain(
        text="a cancellation loses billing data; 1.6% of requests hang under churn",
        source="dynamo#10923, dynamo#13088",
    ),
    20: Pain(
        text="one dead backend hangs everything; the liveness probe kills a busy router",
        source="production-stack#749, #448",
    ),
    21: Pain(
        text="an engine renames a metric and routers break",
        source="production-stack#617",
    ),
    22: Pain(
        text="cold starts without hold, progress, herd limit or Retry-After",
        source="kubeai#176",
    ),
    23: Pain(
        text="Helm never upgrades the CRDs of a chart's crds/",
        source="dynamo PR#10421",
    ),
    24: Pain(
        text="the memory of a Python proxy grows without end",
        source="litellm#12685",
    ),
    25: Pain(
        text="a leftover peering object freezes the watch",
        source="kopf#734",
    ),
}


def marker(number: int) -> str:
    """The name of a pain's pytest marker."""
    return f"pain_{number}"


def register_markers(config: pytest.Config) -> None:
    """Make every pain's marker known to pytest."""
    for number, pain in PAINS.items():
        config.addinivalue_line("markers", f"{marker(number)}: {pain.text} ({pain.source})")


@dataclass(slots=True, eq=False)
class Findings:
    """A pytest plugin: which tests bear which marker, and what came of them."""

    tests: dict[int, dict[str, str]] = field(default_factory=lambda: {n: {} for n in PAINS})
    """By pain: node id to ``listed``, ``passed``, ``failed`` or ``skipped``."""

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep the tests of pains only."""
        kept = []
        for item in items:
            numbers = [number for number in PAINS if item.get_closest_marker(marker(number))]
            for number in numbers:
                self.tests[number][item.nodeid] = "listed"
            if numbers:
                kept.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the worst of set-up, call and tear-down."""
        for tests in self.tests.values():
            before = tests.get(report.nodeid)
            if before is None or before == "failed":
                continue
            if report.outcome != "passed" or report.when == "call":
                tests[report.nodeid] = report.outcome


SIGNS = {"listed": "·", "passed": "✓", "failed": "✗", "skipped": "-"}


def lines_of(findings: Findings) -> list[str]:
    """The list as people read it: each pain, its tests, and what is missing."""
    lines: list[str] = []
    for number, pain in PAINS.items():
        lines.append(f"{number:>2} {pain.text} ({pain.source})")
        lines += [
            f"   {SIGNS[outcome]} {test}" for test, outcome in by_function(findings.tests[number])
        ]
        if pain.missing:
            lines.append(f"   not built yet: {pain.missing}")
        elif not findings.tests[number]:
            lines.append("   ✗ no test, and nothing named that is still to be built")
    tests = {test for found in findings.tests.values() for test in found}
    covered = sum(1 for found in findings.tests.values() if found)
    failed = {
        test for found in findings.tests.values() for test in found if found[test] == "failed"
    }
    waiting = sum(1 for pain in PAINS.values() if pain.missing)
    lines.append("")
    lines.append(
        f"{covered} of {len(PAINS)} pains have tests ({len(tests)}, {len(failed)} failed); "
        f"{waiting} wait for a part that is not built yet"
    )
    return lines


def by_function(tests: dict[str, str]) -> list[tuple[str, str]]:
    """One line for each function: the worst outcome of its parameters."""
    worst = ("failed", "skipped", "listed", "passed")
    found: dict[str, list[str]] = {}
    for test, outcome in tests.items():
        found.setdefault(test.partition("[")[0], []).append(outcome)
    return [
        (name + (f" ({len(outcomes)} cases)" if len(outcomes) > 1 else ""), outcome)
        for name, outcomes in sorted(found.items())
        for outcome in [next(each for each in worst if each in outcomes)]
    ]


def is_kept(findings: Findings) -> bool:
    """Whether no test failed and every pain has a test or a part that will bring it."""
    return all(
        "failed" not in tests.values() and (tests or PAINS[number].missing)
        for number, tests in findings.tests.items()
    )


def main(arguments: Sequence[str]) -> int:
    """Collect, run unless told to list, and print."""
    findings = Findings()
    only_list = "--list" in arguments
    given = [each for each in arguments if each != "--list"]
    options = ["--collect-only", "-qq", "--no-summary"] if only_list else ["-q"]
    code = pytest.main([*options, *given], plugins=[findings])
    print()
    print("\n".join(lines_of(findings)))
    return 0 if code == 0 and is_kept(findings) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
