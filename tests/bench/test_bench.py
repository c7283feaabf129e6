"""bench: the synthetic lengths against the figures that they stand for, and the rows of bench_data and bench_kernels in small."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import bench_kernels
from bench.attention_cases import mnli_lengths
from bench.bench_data import PACKAGES, measure_tokenising
from bench.bench_packing import SUMMARIES, read_histograms, synthetic_histogram
from bench.harness import provenance
from tests.support.tiny_bert import write_tiny_bert
from tests.support.triton_cases import needs_triton

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


def test_tokenising_is_compared_on_the_same_rows(tmp_path):
    rows = [f"{i}\tthe film {'is good ' * (i % 90)}\tnot bad\tneutral\n" for i in range(600)]
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "MNLI" / "train.tsv").write_text("index\tsentence1\tsentence2\tgold_label\n" + "".join(rows))
    found = measure_tokenising(tmp_path, str(write_tiny_bert(tmp_path / "tiny")), 550, 2)
    assert [row["contender"] for row in found] == ["transformers", "bertfast", "bertfast, file to cache"]
    assert {row["pairs"] for row in found} == {550} and len({row["tokens"] for row in found}) == 1
    assert all(low <= median <= high for row in found for low, median, high in [row["pairs_per_second"]])
    assert found[1]["ratios"][0]["value"] is None  # two repeats are too few for a ratio


def test_rows_say_where_they_come_from(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench_data.py", "--data", "/some/where/glue", "--rows", "5"])
    facts = provenance("bench.bench_data", [*PACKAGES, "no-such-package"])
    assert facts["command"] == "python -m bench.bench_data --data glue --rows 5"
    assert facts["versions"].pop("no-such-package") is None
    assert (
        facts["clocks"]["load"] >= 0
        and facts["device"].endswith(" cores")
        and set(facts["versions"]) > {"python", "torch", "transformers", "tokenizers"}
    )


@pytest.fixture
def measured(tmp_path):
    """measured(ops): (exit code, the rows) of bench_kernels in small."""

    def run(*ops):
        output = tmp_path / "rows.jsonl"
        code = bench_kernels.main(["--tiny", "--rounds", "1", "--seed", "5", "--output", str(output), "--ops", *ops])
        return code, [json.loads(line) for line in output.read_text().splitlines()]

    return run


@needs_triton
def test_kernels_are_compared_on_the_same_inputs(measured, capsys):
    code, rows = measured("bias_gelu", "varlen_attention")
    assert code == 0 and "0 results are wrong" in capsys.readouterr().out
    assert all(row["seed"] == 5 and row["versions"]["torch"] and row["command"] for row in rows)
    roofline, *rows = rows
    assert roofline["bytes_per_second"] > 0 and roofline["flops_per_second"] > 0
    errors = [row for row in rows if row["measure"] == "errors"]
    assert {row["op"] for row in errors} == {"bias_gelu", "varlen_attention"} and all(row["right"] for row in errors)
    gelu = [row for row in rows if row["measure"] == "time" and row["op"] == "bias_gelu"]
    assert {row["direction"] for row in gelu} == {"forward", "backward", "forward+backward"}
    assert {row["contender"] for row in gelu} == {"bertfast", "torch eager", "torch.compile"}
    assert all(0 < low <= median <= high for row in gelu for low, median, high in [row["microseconds"]])
    attention = [row for row in rows if row["measure"] == "time" and row["op"] == "varlen_attention"]
    assert {row["contender"] for row in attention} >= {"bertfast", "torch eager", "torch.compile", "torch SDPA"}
    assert not [row for row in attention if "fault" in row] and {row["dropout"] for row in attention} == {0.0, 0.1}


@needs_triton
def test_a_wrong_kernel_is_not_timed_in_silence(measured, monkeypatch, capsys):
    monkeypatch.setattr("bertfast_kernels.gelu._normal_tail", None)  # as a check that the kernel is what runs
    with pytest.raises(Exception, match="_normal_tail|NoneType"):
        measured("bias_gelu")
    monkeypatch.undo()
    monkeypatch.setattr(bench_kernels, "errors_of", lambda *words: {"output": {"error": 0.5, "budget": 0.01}})
    code, rows = measured("cross_entropy")
    assert code == 1 and "2 results are wrong" in capsys.readouterr().out
    assert [row["right"] for row in rows if row["measure"] == "errors"][-1] is False


def test_goals_are_said(capsys):
    common = {"op": "bias_gelu", "size": "16384 x 3072", "dropout": 0.0, "direction": "forward", "teraflops": 0.0}
    ours = {**common, "contender": "bertfast", "microseconds": [1, 50, 60], "share": 0.9}
    other = {**common, "contender": "torch.compile", "microseconds": [1, 75, 80], "share": 0.5}
    lines = bench_kernels.summary([ours, other]).splitlines()
    assert "1.50 x torch.compile (75.0)" in lines[1] and lines[2].startswith("met    bias_gelu") and len(lines) == 3
    assert "MISSED" in bench_kernels.summary([{**ours, "share": 0.84}, other])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cpu_measures_nothing_but_in_small(capsys):
    with pytest.raises(SystemExit):
        bench_kernels.main([])
    assert "--tiny" in capsys.readouterr().err


def test_lengths_of_mnli(monkeypatch):
    monkeypatch.delenv("BERTFAST_DATA", raising=False)
    lengths = mnli_lengths(1)
    assert lengths.mean() == pytest.approx(39.2, rel=0.03) and lengths.max() <= 128 and (lengths == mnli_lengths(1)).all()


def test_contenders_take_turns():
    pytest.importorskip("onnxruntime")
    from bench.bench_export import WARM_UP, compare

    calls, rounds = [], 9
    contenders = {"slow": lambda: (calls.append("slow"), time.sleep(0.02)), "fast": lambda: calls.append("fast")}
    slow, fast = compare(contenders, rounds, {"suite": "export"})
    assert len(calls) == 2 * (rounds + WARM_UP) and {calls[0], calls[1]} == {calls[-1], calls[-2]} == {"slow", "fast"}
    assert fast["ratios"][0]["to"] == "slow" and fast["ratios"][0]["low"] > 1 and slow["milliseconds"][1] >= 20
