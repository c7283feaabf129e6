"""Lengths of texts, in tokens: the histograms of real sets, and made-up ones that fit what is known of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np


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
