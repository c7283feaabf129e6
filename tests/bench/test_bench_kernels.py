"""bench_kernels in small: the same inputs for all, and a wrong kernel is named."""

import json

import pytest
import torch

from bench import bench_kernels
from tests.support.triton_cases import needs_triton


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
