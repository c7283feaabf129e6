"""The rows that the suites wrote, read again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import ROOT

RESULTS = ROOT / "bench" / "results"
Row = dict[str, Any]


def read_rows(files: Iterable[Path]) -> list[Row]:
    """All rows, each with its `suite` (those without one are known by their file: "cpu-kernels.jsonl").

    Raises:
        SystemExit: naming the file and line that is no row.
    """
    rows = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows.append({"suite": file.stem.rpartition("-")[2], **json.loads(line)})
            except (ValueError, TypeError):
                raise SystemExit(f"{file}, line {number}: is no row of a benchmark") from None
    return rows


def of_suite(rows: Sequence[Row], suite: str, *keys: str) -> list[Row]:
    """The rows of a suite that have these keys."""
    return [row for row in rows if row["suite"] == suite and "fault" not in row and all(key in row for key in keys)]
