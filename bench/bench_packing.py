"""Packing: how much of a micro-batch is real tokens, how even the parts are, and how long planning takes.

    python -m bench.bench_packing                            # synthetic lengths, drawn with a seed
    BERTFAST_DATA=<folder> python -m bench.bench_packing     # the histograms in <folder>/length_histograms

Synthetic lengths are log-normal, cut at the set's shortest and longest, with the rows, the mean and the share of full rows of the real set;
every line of them is marked. `unbalanced` is the balance of parts cut at random.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bertfast.planning import Plan, plan_examples, plan_sequential, plan_tokens

BUDGETS = {"sst2_train": (128, 512, 4096, 16384), "mnli_dev_matched": (256, 512, 4096, 16384), "wikipedia_512": (512, 4096, 16384)}
SPLITS = ((32, 2), (32, 4), (32, 8), (256, 8), (1024, 8), (1024, 64), (8192, 1024))  # batch_size, parts


class Summary(NamedTuple):
    """What is known of a set's lengths in tokens of BERT's uncased vocabulary, [CLS] and [SEP] included."""

    rows: int
    mean: float
    spread: float  # of the logarithm; chosen to meet the median and the 95th percentile
    shortest: int
    longest: int
    share_full: float = 0.0  # rows of just the longest length: documents cut at it


# SST-2 and MNLI: counted on GLUE's files (median 10 and 36, 95 % up to 33 and 72). Wikipedia at 512: Krell et al. 2021, "Efficient Sequence
# Packing without Cross-contamination", 16,279,552 sequences, half of whose padded tokens are padding.
SUMMARIES = {
    "sst2_train": Summary(67_349, 13.32, 0.80, 3, 66),
    "mnli_dev_matched": Summary(9_815, 39.18, 0.47, 5, 237),
    "imdb_train": Summary(24_996, 275.32, 0.49, 13, 512, 0.1486),
    "wikipedia_512": Summary(16_279_552, 255.83, 0.83, 5, 512, 0.2343),
}


def synthetic_histogram(summary: Summary, seed: int = 0) -> np.ndarray:
    """Counts by length, from 0 on, of lengths drawn to fit a summary; the mean is met within 1 %."""
    rng = np.random.default_rng(seed)
    full = round(summary.rows * summary.share_full)
    draws = rng.standard_normal(summary.rows - full, dtype=np.float32)
    wanted = (summary.mean * summary.rows - full * summary.longest) / len(draws)

    def lengths(centre: float, draws: np.ndarray) -> np.ndarray:
        values = np.exp(centre + summary.spread * draws) + summary.shortest - 1
        return np.clip(np.rint(values), summary.shortest, summary.longest - bool(full)).astype(np.int64)

    low, high = 0.0, np.log(summary.longest)
    for _ in range(20):  # the mean rises with the centre
        centre = (low + high) / 2
        low, high = (low, centre) if lengths(centre, draws[:100_000]).mean() > wanted else (centre, high)
    counts = np.bincount(lengths(centre, draws), minlength=summary.longest + 1)
    counts[summary.longest] += full
    return counts


def read_histograms(folder: Path) -> dict[str, np.ndarray]:
    """Counts by length, of every set that was counted; longer texts count as 512."""
    measured = json.loads((folder / "measured_wordpiece_lengths.json").read_text())
    published = json.loads((folder / "graphcore_packedbert_histograms.json").read_text())
    counts = {**{name: facts["hist_1_to_512"] for name, facts in measured.items()}, **published}
    return {name: np.array([0, *values]) for name, values in counts.items()}


def draw_lengths(counts: np.ndarray) -> np.ndarray:
    """The lengths of a whole set, int32, in random order."""
    lengths = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    np.random.default_rng(0).shuffle(lengths)
    return lengths


def best_of(times: int, call: Callable[[], Plan]) -> tuple[Plan, float, float]:
    """The plan, the seconds of the first call and of the fastest."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        plan = call()
        seconds.append(time.perf_counter() - start)
    return plan, seconds[0], min(seconds)


def seconds_per_step(plan: Plan) -> float:
    """What reading a step costs one rank: its micro-batches and both counts."""
    steps = range(min(len(plan), 200))
    start = time.perf_counter()
    for step in steps:
        plan.micro_batches(step, 0)
        plan.num_examples(step)
        plan.num_tokens(step)
    return (time.perf_counter() - start) / len(steps)


def padded_shares(lengths: np.ndarray, batch_size: int = 32) -> tuple[float, float]:
    """Share of real tokens where batches are padded to 128 (or the longest of the set), and to their own longest."""
    whole = lengths[: len(lengths) // batch_size * batch_size][: batch_size * 10_000].reshape(-1, batch_size)
    return float(whole.mean() / max(128, lengths.max())), float(whole.sum() / (whole.max(axis=1).sum() * batch_size))


def main() -> None:
    data = os.environ.get("BERTFAST_DATA")
    if data:
        histograms = read_histograms(Path(data) / "length_histograms")
    else:
        print("BERTFAST_DATA is not set: all lengths are synthetic, made to fit the mean, spread and longest of the real sets\n")
        histograms = {name: synthetic_histogram(summary) for name, summary in SUMMARIES.items()}
    mark = "" if data else "~"  # a line of synthetic lengths
    sets = {f"{mark}{name}": draw_lengths(counts) for name, counts in histograms.items()}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}\n")

    print("plan_tokens                examples  budget   micro-batches     fill   first s    best s   ms/step")
    for name, lengths in sets.items():
        for budget in BUDGETS[name.removeprefix("~")]:
            plan, first, best = best_of(3, lambda lengths=lengths, budget=budget: plan_tokens(lengths, budget))
            step = seconds_per_step(plan) * 1e3
            print(f"  {name:20s} {len(lengths):12,} {budget:7,} {len(plan):15,} {plan.fill:8.3%} {first:9.4f} {best:9.4f} {step:9.3f}")
        longest, own = padded_shares(lengths)
        print(f"  {name:20s} in batches of 32 padded to {max(128, lengths.max())}: {longest:.1%}; to their own longest: {own:.1%}")

    print("\nplan_examples              examples   batch   parts   balance   unbalanced    best s   ms/step")
    for name, lengths in sets.items():
        for batch_size, parts in SPLITS:
            plan, _, best = best_of(2, lambda lengths=lengths, n=batch_size, parts=parts: plan_examples(lengths, n, world_size=parts))
            chunks = lengths[: min(len(lengths) // batch_size, 500) * batch_size].reshape(-1, parts, batch_size // parts).sum(axis=2)
            random = chunks.max(axis=1).sum() / chunks.mean(axis=1).sum()
            balance, step = plan.describe()["balance"], seconds_per_step(plan) * 1e3
            print(f"  {name:20s} {len(lengths):12,} {batch_size:7,} {parts:7,} {balance:9.4f} {random:12.4f} {best:9.4f} {step:9.3f}")

    print("\nplan_sequential            examples   batch   ranks   balance   steps    best s")
    for name, lengths in sets.items():
        for ranks in (1, 8):
            plan, _, best = best_of(2, lambda lengths=lengths, ranks=ranks: plan_sequential(lengths, 256, world_size=ranks))
            print(f"  {name:20s} {len(lengths):12,} {256:7,} {ranks:7,} {plan.describe()['balance']:9.4f} {len(plan):7,} {best:9.4f}")


if __name__ == "__main__":
    main()
