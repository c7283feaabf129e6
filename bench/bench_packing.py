"""Packing: how much of a micro-batch is real tokens, how even the parts are, and how long planning takes.

    python -m bench.bench_packing [--quick] [--output FILE]       # synthetic lengths, drawn with a seed
    BERTFAST_DATA=<folder> python -m bench.bench_packing          # the histograms in <folder>/length_histograms

Synthetic lengths are log-normal, cut at the set's shortest and longest, with the rows, the mean and the share of full rows of the real set;
every row of them says so. Balance is (tokens of the largest part) / (mean tokens of a part): what a rank waits for the slowest. `at_random` is that of
parts cut at random, as everybody's distributed sampler does it. Planning is timed as often as --repeats says.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases.lengths import SUMMARIES, draw_lengths, read_histograms, synthetic_histogram
from bench.harness.intervals import significant
from bench.harness.provenance import provenance
from bench.harness.rows import keep
from bertfast.packing.plans import Plan, plan_examples, plan_tokens

BUDGETS = (128, 512, 4096, 16384)  # tokens; those below the longest example are left out
RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
EXAMPLES_A_RANK = 32
_FEWEST_STEPS = 4  # of an epoch that is worth a balance


def timed(times: int, call: Callable[[], Plan]) -> tuple[Plan, list[float]]:
    """The plan, and the seconds of every call."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        plan = call()
        seconds.append(time.perf_counter() - start)
    return plan, seconds


def padded_shares(lengths: np.ndarray, batch_size: int = 32) -> tuple[float, float]:
    """Share of real tokens where batches are padded to 128 (or the longest of the set), and to their own longest."""
    whole = lengths[: len(lengths) // batch_size * batch_size][: batch_size * 10_000].reshape(-1, batch_size)
    return float(whole.mean() / max(128, lengths.max())), float(whole.sum() / (whole.max(axis=1).sum() * batch_size))


def fill_rows(name: str, lengths: np.ndarray, repeats: int) -> Iterator[dict[str, Any]]:
    """How full micro-batches of a token budget are, and what planning them takes; and what padding would make of the same examples."""
    fixed, own = padded_shares(lengths) if len(lengths) >= 32 else (float("nan"), float("nan"))
    for budget in BUDGETS:
        if budget < lengths.max():
            continue
        plan, seconds = timed(repeats, lambda budget=budget: plan_tokens(lengths, budget))
        row = {
            "measure": "fill",
            "case": f"{name}, budget {budget}",
            "set": name,
            "examples": len(lengths),
            "budget": budget,
            "contender": "bertfast",
        }
        row |= {
            "micro_batches": len(plan),
            "fill": round(plan.fill, 5),
            "fill_padded_to_fixed": round(fixed, 4),
            "fill_padded_to_longest": round(own, 4),
        }
        yield {**row, **_seconds(seconds)}


def balance_rows(name: str, lengths: np.ndarray, repeats: int, ranks: Sequence[int] = RANKS) -> Iterator[dict[str, Any]]:
    """How even the parts of a global batch are, 32 examples a rank."""
    for count in ranks:
        batch_size = EXAMPLES_A_RANK * count
        needed = _FEWEST_STEPS * batch_size
        is_drawn = len(lengths) < needed  # too small a set: as many are drawn from it as are needed
        used = np.random.default_rng(count).choice(lengths, needed) if is_drawn else lengths
        plan, seconds = timed(
            repeats, lambda used=used, batch_size=batch_size, count=count: plan_examples(used, batch_size, world_size=count)
        )
        chunks = used[: min(len(used) // batch_size, 200) * batch_size].reshape(-1, count, EXAMPLES_A_RANK).sum(axis=2)
        start = time.perf_counter()
        steps = min(len(plan), 50)
        for step in range(steps):
            plan.micro_batches(step, 0)
        row = {
            "measure": "balance",
            "case": f"{name}, {count} ranks",
            "set": name,
            "ranks": count,
            "drawn": is_drawn,
            "batch_size": batch_size,
            "contender": "bertfast",
        }
        row |= {
            "balance": round(plan.describe()["balance"], 5),
            "at_random": round(float(chunks.max(axis=1).sum() / chunks.mean(axis=1).sum()), 4),
        }
        yield {**row, "milliseconds_a_step": round((time.perf_counter() - start) / steps * 1e3, 4), **_seconds(seconds)}


def _seconds(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "seconds": [significant(value) for value in np.percentile(seconds, [25, 50, 75])],
        "samples": [significant(value) for value in seconds],
    }


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Two tables that a person can read."""
    lines = ["", f"{'fill':28s} {'examples':>11s} {'budget':>7s} {'fill':>9s} {'padded':>7s} {'planned in s':>13s}"]
    for row in rows:
        if row["measure"] == "fill":
            figures = f"{row['examples']:11,} {row['budget']:7,} {row['fill']:9.3%} {row['fill_padded_to_longest']:7.1%} {row['seconds'][1]:13.4f}"
            lines.append(f"{row['set']:28s} {figures}")
    lines += ["", f"{'balance, 32 examples a rank':28s} {'ranks':>7s} {'balance':>8s} {'at random':>10s} {'ms a step':>10s}"]
    for row in rows:
        if row["measure"] == "balance":
            lines.append(
                f"{row['set']:28s} {row['ranks']:7,} {row['balance']:8.4f} {row['at_random']:10.4f} {row['milliseconds_a_step']:10.3f}"
            )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the sets of SST-2 and MNLI alone, planned three times")
    parser.add_argument("--sets", nargs="+", help="left out: all that there are")
    parser.add_argument("--repeats", type=int, help="left out: 10, or 3 with --quick")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    data = os.environ.get("BERTFAST_DATA")
    found = read_histograms(Path(data) / "length_histograms") if data else {}
    names = options.sets or (["sst2_train", "mnli_dev_matched"] if options.quick else list(found or SUMMARIES))
    repeats, rows = options.repeats or (3 if options.quick else 10), []
    common = {"suite": "packing", "origin": "histogram" if found else "synthetic"}
    facts = {"seed": 0, **provenance("bench.bench_packing", ("numpy",))}
    for name in names:
        lengths = draw_lengths(found[name] if found else synthetic_histogram(SUMMARIES[name]))
        for kind in (fill_rows, balance_rows):
            rows += keep(({**common, **row} for row in kind(name, lengths, repeats)), facts, options.output)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
