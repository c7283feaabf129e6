"""bench.cases.lengths: the synthetic lengths against the figures that they stand for."""

import os
from pathlib import Path

import numpy as np
import pytest

from bench.cases.lengths import SUMMARIES, read_histograms, synthetic_histogram

PERCENTILES = {"sst2_train": {50: 10, 95: 33}, "mnli_dev_matched": {50: 36, 95: 72}}


@pytest.mark.parametrize("name", SUMMARIES)
def test_synthetic_lengths_fit_what_is_known(name):
    summary = SUMMARIES[name]
    summary = summary._replace(rows=min(summary.rows, 200_000))
    counts = synthetic_histogram(summary)
    lengths = np.repeat(np.arange(len(counts)), counts)
    assert len(lengths) == summary.rows
    assert lengths.mean() == pytest.approx(summary.mean, rel=0.01)
    assert summary.shortest <= lengths.min() and lengths.max() <= summary.longest
    assert counts[summary.longest] / summary.rows >= summary.share_full - 1e-4
    for percent, expected in PERCENTILES.get(name, {}).items():
        assert np.percentile(lengths, percent) == pytest.approx(expected, abs=2)
    assert (counts == synthetic_histogram(summary)).all() and (counts != synthetic_histogram(summary, seed=1)).any()


@pytest.mark.skipif("BERTFAST_DATA" not in os.environ, reason="BERTFAST_DATA is not set: it holds the real histograms")
def test_the_summaries_are_those_of_the_real_histograms():
    found = read_histograms(Path(os.environ["BERTFAST_DATA"]) / "length_histograms")
    for name, summary in SUMMARIES.items():
        counts, lengths = found[name], np.arange(len(found[name]))
        assert counts.sum() == summary.rows
        assert counts @ lengths / summary.rows == pytest.approx(summary.mean, abs=0.01)
        assert summary.longest == np.flatnonzero(counts)[-1]
        assert summary.share_full == 0 or counts[summary.longest] / summary.rows == pytest.approx(summary.share_full, abs=1e-4)
