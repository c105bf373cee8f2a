"""Write what the chart holds of others' making, or check that it is as it should be.

``python charts/tools/generate.py`` writes ``values.schema.json`` from ``values.yaml``, the
templates of the CRDs from ``crds/`` and the operator's roles from its table of permissions; with
``--check`` it writes nothing and exits 1 with the difference.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if __package__ in (None, ""):
    sys.path.insert(0, str(_ROOT))

from charts.tools.crd_templates import crd_template  # noqa: E402
from charts.tools.role_templates import role_templates  # noqa: E402
from charts.tools.values_schema import rendered_schema  # noqa: E402

CHART = _ROOT / "charts" / "pointsman"
CRDS = _ROOT / "crds"


def generated_files(chart: Path = CHART, crds: Path = CRDS) -> dict[str, str]:
    """The text of each generated file by its path inside the chart."""
    files = {
        "values.schema.json": rendered_schema((chart / "values.yaml").read_text(encoding="utf-8"))
    }
    for path in sorted(crds.glob("*.yaml")):
        files[f"templates/crds/{path.name}"] = crd_template(path.read_text(encoding="utf-8"))
    return {**files, **role_templates()}


def drift(chart: Path = CHART, crds: Path = CRDS) -> str:
    """The difference between the chart's files and what they should be; empty if equal."""
    wanted_files = generated_files(chart, crds)
    for path in sorted((chart / "templates" / "crds").glob("*.yaml")):
        wanted_files.setdefault(f"templates/crds/{path.name}", "")
    parts: list[str] = []
    for name, wanted in wanted_files.items():
        path = chart / name
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        parts += difflib.unified_diff(
            found.splitlines(keepends=True),
            wanted.splitlines(keepends=True),
            fromfile=f"charts/pointsman/{name}",
            tofile=f"charts/pointsman/{name} (generated)",
        )
    return "".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Write or check the files; the exit status."""
    parser = argparse.ArgumentParser(prog="charts/tools/generate.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 on drift")
    options = parser.parse_args(arguments)
    if options.check:
        if difference := drift():
            sys.stderr.write(difference)
            sys.stderr.write(
                "The chart's generated files are stale: run `python charts/tools/generate.py`.\n"
            )
            return 1
        return 0
    for name, text in generated_files().items():
        path = CHART / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
