"""bench.report.tables: what a reader is told of the rows, and what he is not."""

from bench.harness.intervals import timing_rows
from bench.report.page import report
from bench.report.rows import read_rows
from tests.bench.step_rows import FACTS, step_rows, write


def test_a_tie_is_told_as_a_tie(tmp_path):
    rows = read_rows([write(tmp_path / "cpu-step.jsonl", step_rows())])
    lines = report(rows)
    fast = next(line for line in lines if "| bertfast fp32 |" in line)
    same = next(line for line in lines if "| bertfast bf16 |" in line)
    assert "2.0" in fast and "x [" in fast and "transformers fp32" in fast
    assert "tie [" in same and "x [" not in same
    assert any("a machine, commit abc1234: `python -m bench.bench_step`" in line for line in lines)


def test_every_suite_has_its_table():
    common = {"contender": "bertfast fp32", "case": "a case", "seconds": [1, 2, 3], **FACTS}
    tie = {"to": "torch eager", "value": None, "low": 0.9, "high": 1.1, "confidence": 0.99, "rounds": 9}
    rows = [
        {"suite": "packing", "set": "sst2", "budget": 512, "fill": 0.99, "fill_padded_to_longest": 0.33, **common},
        {"suite": "packing", "set": "sst2", "ranks": 64, "balance": 1.001, "at_random": 1.3, **common},
        {"suite": "data", "pairs_per_second": [1, 24_000, 3], **common},
        {"suite": "inference", "milliseconds": [1, 7.5, 9], "ratios": [tie], **common},
        {"suite": "scale", "exponent": 0.97, "interval": [0.9, 1.04], **common},
        {"suite": "scale", "overhead": True, "ratios": [tie], **common},
        {"suite": "scale", "stage": 3, "ranks": 2, "peak_bytes": 2e9, "estimate_bytes": 1e9, **common},
        {"suite": "scale", "lengths": "mnli", "ranks": 1024, "efficiency": 0.985, "at_random": 0.84, **common},
        {
            "suite": "kernels",
            "op": "bias_gelu",
            "size": "9 x 9",
            "dropout": 0.0,
            "direction": "forward",
            "microseconds": [1, 5, 6],
            "share": 0.9,
            **common,
        },
        {"suite": "inference", "contender": "Optimum", "case": "1 x 16", "fault": "it is not here", **FACTS},
    ]
    text = "\n".join(report(rows))
    for words in (
        "| sst2 | 512 | 99.000% | 33.0% | 2 |", "| set | 64 |", "1.0010 (1.30)", "| 24000 |", "| 7.5 | tie [0.90, 1.10] torch eager |", "| 0.97 | 0.9 to 1.04 |",
        "| 3 | 2 | 2.00 | 1.00 |", "| mnli | 1024 | 98.5% | 84.0% |", "| bias_gelu | 9 x 9 |", "- Optimum did not run (1 x 16): it is not here",
    ):  # fmt: skip
        assert words in text
    assert "|---|\n\n" not in text  # a table of no rows


def test_the_strongest_peer_of_each_case_is_named():
    """The fastest, whatever it answers; that of those that keep 99 % of the answers; and that of those that keep all."""
    seconds = {"eager": [4.0] * 9, "exact": [2.0 + 1e-3 * n for n in range(9)], "rough": [1.0 + 1e-3 * n for n in range(9)]}
    seconds |= {"off": [0.1] * 9, "bertfast int8": [0.5 + 1e-3 * n for n in range(9)], "bertfast bf16": [1.6 + 1e-3 * n for n in range(9)]}
    same = {"eager": 1.0, "exact": 1.0, "rough": 0.994, "off": 0.9, "bertfast int8": 0.998, "bertfast bf16": 1.0}
    figures = {"largest_difference": 0.2, "alone_difference": 0.01, "resident_bytes": 99.6e6, "peak_bytes": 4e8, "file_bytes": None}
    rows = timing_rows({"suite": "inference", "case": "a file"}, seconds, ["eager", "exact", "rough", "off"])
    rows = [
        {**row, **FACTS, **figures, "same": same[row["contender"]], "milliseconds": [1e3 * value for value in row["seconds"]]}
        for row in rows
    ]
    rows[-1]["note"] = "disturbed"
    lines = report(rows)
    assert any("| 1604.0 (disturbed) |" in line for line in lines)
    least = ("any", "99 % or more", "all")
    fastest, best, exact = (next(line for line in lines if line.startswith(f"| a file | {said} |")) for said in least)
    assert fastest.startswith("| a file | any | off (90.00%) | 100.0 | 504.0 | bertfast int8 (99.80%) | 0.20x [")
    assert best.startswith("| a file | 99 % or more | rough (99.40%) | 1004.0 | 504.0 | bertfast int8 (99.80%) | 1.99x [")
    assert exact.startswith("| a file | all | exact (100.00%) | 2004.0 | 1604.0 | bertfast bf16 (100.00%) | 1.25x [")
    assert any(line.startswith("| a file | off | 100.0 | 90.00% | 0.2 | 0.01 | 100 | 400 |  |") for line in lines)


def test_the_strongest_peer_of_a_training_step():
    rows = [{**row, "peak_bytes": 1e9 if "transformers" in row["contender"] else 6e8} for row in step_rows()]
    line = next(line for line in report(rows) if "| transformers fp32 | " in line and "| bertfast fp32 | " in line)
    assert line.startswith("| tiny, sst2, batch 32 | transformers fp32 | ") and "x [" in line and line.endswith("| 0.60 |")


def test_a_step_that_was_profiled_says_where_its_time_went():
    rows = [{**row, "matrix_rate_share": 0.57, "where": {"GEMM": 0.51, "outside operators": 0.49}} for row in step_rows()[:1]]
    assert f"| tiny, sst2, batch 32 | {rows[0]['contender']} | 57% | GEMM 51%, outside operators 49% |" in report(rows)


def test_a_run_that_was_disturbed_says_so():
    row = {"suite": "task", "task": "sst2", "rows": 9, "epochs": 1, "contender": "a", "metrics": {"dev": {"accuracy": 0.5}}, **FACTS}
    timed = {**row, "train_seconds": 8.0, "samples_per_second": 1.1}
    lines = report([timed, {**timed, "note": "disturbed"}, {**row, "contender": "without seconds"}])
    assert "| sst2, 9 rows, 1 epochs | a | 8.0 | 1.1 |  | dev accuracy 0.5000 |" in lines
    assert "| sst2, 9 rows, 1 epochs | a | 8.0 (disturbed) | 1.1 |  | dev accuracy 0.5000 |" in lines
    assert "without seconds" not in "\n".join(lines)
