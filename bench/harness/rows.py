"""Rows: what a suite has measured, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def quartiles(values: Sequence[float], digits: int = 3) -> list[float]:
    """25 %, median, 75 %."""
    return [round(float(value), digits) for value in np.percentile(values, [25, 50, 75])]


def write_row(row: dict[str, Any], output: Path | None) -> None:
    """A JSON line at the end of `output`, or without one on standard output."""
    line = json.dumps(row)
    if output is None:
        print(line, flush=True)
    else:
        with open(output, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def keep(rows: Iterable[dict[str, Any]], facts: dict[str, Any], output: Path | None) -> list[dict[str, Any]]:
    """Write each row as soon as it is measured, with the facts of its run; the rows themselves, for the summary."""
    kept = []
    for row in rows:
        write_row({**row, **facts}, output)
        kept.append(row)
    return kept
