"""Tables and plots of the rows that the suites wrote.

    python -m bench.report [FILE ...] [--output FOLDER]

Reads bench/results/*.jsonl where no file is named; writes report.md and plots as PNG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report.page import report
from bench.report.plots import draw_all
from bench.report.rows import RESULTS, read_rows
from bertfast.storage.files import replacing


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="left out: bench/results/*.jsonl")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for report.md and the plots")
    options = parser.parse_args(words)
    rows = read_rows(options.files or sorted(RESULTS.glob("*.jsonl")))
    if not rows:
        print("there are no rows; run a suite with --output first")
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    plots = draw_all(rows, options.output)
    with replacing(options.output / "report.md") as file:
        file.write("\n".join(report(rows, plots)) + "\n")
    print(f"{options.output / 'report.md'}: {len(rows)} rows, {len(plots)} plots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
