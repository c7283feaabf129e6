"""bench: the synthetic lengths against the figures that they stand for, and the rows of bench_data in small."""

import os
from pathlib import Path

import numpy as np
import pytest
from tiny_bert import write_tiny_bert

from bench.bench_data import measure_tokenising, provenance
from bench.bench_packing import SUMMARIES, read_histograms, synthetic_histogram

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
    for name, counts in read_histograms(Path(os.environ["BERTFAST_DATA"]) / "length_histograms").items():
        summary, lengths = SUMMARIES[name], np.arange(len(counts))
        assert counts.sum() == summary.rows
        assert counts @ lengths / summary.rows == pytest.approx(summary.mean, abs=0.01)
        assert summary.longest == np.flatnonzero(counts)[-1]
        assert summary.share_full == 0 or counts[summary.longest] / summary.rows == pytest.approx(summary.share_full, abs=1e-4)


def test_tokenising_is_compared_on_the_same_rows(tmp_path):
    rows = [f"{i}\tthe film {'is good ' * (i % 90)}\tnot bad\tneutral\n" for i in range(600)]
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "MNLI" / "train.tsv").write_text("index\tsentence1\tsentence2\tgold_label\n" + "".join(rows))
    found = measure_tokenising(tmp_path, str(write_tiny_bert(tmp_path / "tiny")), 550, 2)
    assert [row["contender"] for row in found] == ["transformers", "bertfast", "bertfast, file to cache"]
    assert {row["pairs"] for row in found} == {550} and len({row["tokens"] for row in found}) == 1
    assert all(low <= median <= high for row in found for low, median, high in [row["pairs_per_second"]])


def test_rows_say_where_they_come_from(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench_data.py", "--data", "/some/where/glue", "--rows", "5"])
    facts = provenance()
    assert facts["command"] == "python -m bench.bench_data --data glue --rows 5"
    assert facts["device"].endswith(" cores") and set(facts["versions"]) > {"python", "torch", "transformers", "tokenizers"}
