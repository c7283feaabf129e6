"""Of the suites that need a GPU their tables, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.rows import Row, of_suite
from bench.report.tables import kernels_table, step_table, table


def gpu_step_table(rows: Sequence[Row]) -> list[str]:
    """A whole step beside the peers, and what it comes to: losses replayed, a run's seconds, how busy the GPU is."""
    timed = step_table([{**row, "suite": "step"} for row in of_suite(rows, "gpu_step", "samples_per_second", "case") if "ratios" in row])
    losses = table(
        ("losses of", "which run", "steps", "largest difference from the plain run's", "mean"),
        (
            (row["case"], row["contender"], row["steps"], row["differences"]["largest"], row["differences"]["mean"])
            for row in of_suite(rows, "gpu_step", "differences")
        ),
    )
    runs = table(
        ("run", "contender", "steps", "samples/s while stepping", "seconds by part"),
        (
            (
                row["case"],
                row["contender"],
                row["training"]["steps"],
                row["training"]["samples_per_second"],
                ", ".join(f"{part} {seconds}" for part, seconds in row["where"].items()),
            )
            for row in of_suite(rows, "gpu_step", "training")
        ),
    )
    busy = table(
        ("step", "contender", "ms", "ms of kernels"),
        ((row["case"], row["contender"], row["step_ms"], row["kernel_ms"]) for row in of_suite(rows, "gpu_step", "kernel_ms")),
    )
    return [*timed, *losses, *runs, *busy]


def sweep_table(rows: Sequence[Row]) -> list[str]:
    """Of each case the launch that training took when it was measured, and the quickest."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        timed = {row["candidate"]: row for row in of_suite(rows, "sweep", "microseconds") if row["case"] == case}
        if "default" not in timed:
            continue
        best = min(timed.values(), key=lambda row: row["microseconds"][1])
        default = timed["default"]["microseconds"][1]
        lines.append((case, default, best["candidate"], best["microseconds"][1], f"{best['microseconds'][1] / default:.2f}", len(timed)))
    return table(("kernel, size, dropout", "us", "quickest candidate", "us", "of it", "candidates"), lines)


GPU_TABLES = {
    "kernels": ("Kernels", kernels_table),
    "sweep": ("Launches of the kernels", sweep_table),
    "gpu_step": ("Training step on a GPU", gpu_step_table),
}
