"""What got slower between two runs of the suites.

    python -m bench.compare OLD NEW

OLD, NEW: files of rows, or folders of them. Rows are matched by suite, case and contender. Where both files time the same peer beside a contender, its
time is taken relative to the peer's, round by round, so that another machine state on another day counts for less; else seconds are compared as they
are. Exit code 1: something got slower, that is, its whole 99 % interval lies under 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.compare.changes import compare
from bench.report.rows import read_rows


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(words)
    old, new = (read_rows(sorted(path.glob("*.jsonl")) if path.is_dir() else [path]) for path in (options.old, options.new))
    changes, left_out = compare(old, new)
    for change in changes:
        beside = f"  (relative to {change.against})" if change.against else ""
        print(f"{change.verdict:7s} {change.ratio!s:28s} {', '.join(change.key)}{beside}")
    for line in left_out:
        print(f"not compared: {line}")
    slower = [change for change in changes if change.verdict == "SLOWER"]
    print(f"{len(slower)} of {len(changes)} got slower; as many as {len(changes) / 100:.1f} would be called so, or faster, by chance")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
