"""The table of SECURITY.md, from the result of `bench_attack.py`.

cd benchmarks; python -m attack.table results/attack-2core.json
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARK = "<!-- attacks: python -m attack.table -->"
"""The line of SECURITY.md after which the table begins."""

HEAD = (
    "| attack | latest frame, ms | in the 5 s before, ms | late by over 40 ms | memory, MB "
    "| `/healthz`, new session, ms | load | commit |",
    "|---|---:|---:|---:|---:|---:|---:|---|",
)


def table(result: Mapping[str, Any]) -> str:
    """Return the table of a result, as Markdown."""
    return "\n".join([*HEAD, *(row_text(row) for row in result["attacks"])])


def row_text(row: Mapping[str, Any]) -> str:
    """Return one row of the table."""
    cells = (
        row["attack"].replace("-", " "),
        f"{row['latest_ms']:.0f}",
        f"{row['before_ms']:.0f}",
        f"{100 * row['late_share']:.1f} %",
        f"{row['grown_mb']:+.0f}",
        f"{row['health_ms']:.0f}, {row['session_ms']:.0f}",
        f"{row['load']:.1f}",
        row["commit"],
    )
    return f"| {' | '.join(cells)} |"


def put_into(page: str, result: Mapping[str, Any]) -> str:
    """Return a page with its table in place of that which follows `MARK`."""
    before, _, rest = page.partition(MARK + "\n")
    lines = rest.split("\n")
    while lines and lines[0].startswith("|"):
        lines.pop(0)
    return "\n".join([before + MARK, table(result), *lines])


def main() -> int:
    """Update SECURITY.md from the file that the command line names."""
    page = Path(__file__).parents[2] / "SECURITY.md"
    result = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    page.write_text(put_into(page.read_text("utf-8"), result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
