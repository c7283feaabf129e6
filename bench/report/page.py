"""The page of results: for each suite its tables, where its rows come from, and its plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.report.gpu_tables import GPU_TABLES
from bench.report.rows import Row
from bench.report.tables import TABLES

INTRODUCTION = (
    "A ratio is how many times as fast a contender is, with its 99 % interval; where that covers 1, it is a tie. The contenders of one ratio took turns in",
    "one run. transformers is set up as its own documentation says. A training step's contenders were each a process of its own, with the same weights and",
    "examples, dropout 0.1, clipping and AdamW; their losses agreed before anything was timed. Length-grouped batches hold texts of like length, and so",
    "little padding, but they are less random; bertfast's batches stay random. So was each contender of inference; its answers were held against eager",
    "float32's, and stand beside its time. The strongest peer of a case is the fastest contender that is not bertfast's.",
)


def origin(rows: Sequence[Row]) -> list[str]:
    """Where the rows of one suite come from, a line a run."""
    runs = dict.fromkeys((_device(row), row.get("commit", "?"), row.get("command", "")) for row in rows)
    return [
        f"Measured on {device}, commit {commit}: `{command}`" if command else f"Measured on {device}, commit {commit}"
        for device, commit, command in runs
    ]


def _device(row: Row) -> str:
    """The name, and of a CPU whose row tells them its instructions for 16 and 8 bits."""
    name, instructions = row.get("device", "device not recorded"), row.get("instructions")
    return f"{name} ({', '.join(instructions)})" if instructions else name


def report(rows: Sequence[Row], plots: Sequence[Path] = ()) -> list[str]:
    """The lines of report.md: for each suite that has rows its table, where it comes from, and its plots."""
    lines = ["# Benchmarks", "", *INTRODUCTION, ""]
    for suite, (title, make) in (TABLES | GPU_TABLES).items():
        found = [row for row in rows if row["suite"] == suite]
        if found:
            lines += [f"## {title}", "", *compact(make(found)), *(f"{line}  " for line in origin(found)), ""]
            lines += [f"![{plot.stem}]({plot.name})" for plot in plots if plot.stem.startswith(f"{suite}-")] + [""]
            lines += [
                f"- {row.get('contender', '?')} did not run ({row.get('case', '')}): {row['fault']}" for row in found if "fault" in row
            ]
            lines.append("")
    kept = [line for before, line in zip(["", *lines], lines, strict=False) if line or before]  # no blank line follows another
    return kept[:-1] if kept[-1:] == [""] else kept


def compact(lines: Sequence[str]) -> list[str]:
    """Without tables of no rows."""
    kept: list[str] = []
    for index, line in enumerate(lines):
        is_head = index + 1 < len(lines) and lines[index + 1].startswith("|---")
        is_empty = (index + 2 >= len(lines) or not lines[index + 2].startswith("|")) if is_head else False
        is_rule_of_empty = line.startswith("|---") and (index + 1 >= len(lines) or not lines[index + 1].startswith("|"))
        if not is_empty and not is_rule_of_empty:
            kept.append(line)
    return kept
