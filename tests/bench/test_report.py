"""bench.report, plots and compare: what a reader is told of the rows, and what he is not."""

import json

import numpy as np
import pytest

from bench import compare, report
from bench.intervals import timing_rows

FACTS = {"device": "a machine", "commit": "abc1234", "command": "python -m bench.bench_step"}


def step_rows(speed=2.0, seed=0, rounds=12, **facts):
    rng = np.random.default_rng(seed)
    noise = lambda: np.exp(0.01 * rng.standard_normal(rounds))  # noqa: E731
    seconds = {"transformers fp32": 0.2 * noise(), "bertfast fp32": 0.2 / speed * noise(), "bertfast bf16": 0.2 * noise()}
    common = {"suite": "step", "case": "tiny, sst2, batch 32", "model": "tiny", "lengths": "sst2", "batch_size": 32}
    rows = timing_rows(common, seconds, ["transformers fp32"])
    for row in rows:
        row |= {"samples_per_second": [round(32 / value, 1) for value in row["seconds"][::-1]], **FACTS, **facts}
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_tie_is_told_as_a_tie(tmp_path):
    rows = report.read_rows([write(tmp_path / "cpu-step.jsonl", step_rows())])
    lines = report.report(rows)
    fast = next(line for line in lines if "| bertfast fp32 |" in line)
    same = next(line for line in lines if "| bertfast bf16 |" in line)
    assert "2.0" in fast and "x [" in fast and "transformers fp32" in fast
    assert "tie [" in same and "x [" not in same
    assert any("a machine, commit abc1234: `python -m bench.bench_step`" in line for line in lines)


def test_plots_and_page(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [*step_rows(), *({**row, "batch_size": 64, "case": "tiny, sst2, batch 64"} for row in step_rows())]
    curve = {"suite": "task", "task": "sst2", "case": "sst2", "contender": "bertfast fp32", "metrics": {"dev": {"accuracy": 0.9}}}
    rows.append({**curve, "samples_per_second": 90.0, "curve": [[1, 0.5], [2, 0.8]], **FACTS})
    file = write(tmp_path / "rows.jsonl", rows)
    assert report.main([str(file), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "![step-throughput](step-throughput.png)" in page and "![task-time_to_score](task-time_to_score.png)" in page
    assert (tmp_path / "out" / "step-throughput.png").read_bytes().startswith(b"\x89PNG") and "accuracy 0.9000" in page
    assert not (tmp_path / "out" / "kernels-roofline.png").exists()


def test_every_suite_has_its_table():
    common = {"contender": "bertfast fp32", "case": "a case", "seconds": [1, 2, 3], **FACTS}
    tie = {"to": "torch eager", "value": None, "low": 0.9, "high": 1.1, "confidence": 0.99, "rounds": 9}
    rows = [
        {"suite": "packing", "set": "sst2", "budget": 512, "fill": 0.99, "fill_padded_to_longest": 0.33, **common},
        {"suite": "packing", "set": "sst2", "ranks": 64, "balance": 1.001, "at_random": 1.3, **common},
        {"suite": "data", "pairs_per_second": [1, 24_000, 3], **common},
        {"suite": "export", "milliseconds": [1, 7.5, 9], "ratios": [tie], **common},
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
        {"suite": "export", "contender": "Optimum", "case": "1 x 16", "fault": "it is not here", **FACTS},
    ]
    text = "\n".join(report.report(rows))
    for words in (
        "| sst2 | 512 | 99.000% | 33.0% | 2 |", "| set | 64 |", "1.0010 (1.30)", "| 24000 |", "| 7.5 | tie [0.90, 1.10] torch eager |", "| 0.97 | 0.9 to 1.04 |",
        "| 3 | 2 | 2.00 | 1.00 |", "| mnli | 1024 | 98.5% | 84.0% |", "| bias_gelu | 9 x 9 |", "- Optimum did not run (1 x 16): it is not here",
    ):  # fmt: skip
        assert words in text
    assert "|---|\n\n" not in text  # a table of no rows


def test_the_rows_that_are_kept_can_be_reported():
    files = sorted(report.RESULTS.glob("*.jsonl"))
    rows = report.read_rows(files)
    assert {row["suite"] for row in rows} >= {"step", "task", "data"}
    assert all(f"## {report.TABLES[row['suite']][0]}" in report.report(rows) for row in rows)


def test_the_readme_keeps_all_but_its_table(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold table\n{report.END}\nafter\n")
    report.update_readme(readme, step_rows())
    once = readme.read_text()
    assert once.startswith(f"before\n{report.BEGIN}\n") and once.endswith(f"{report.END}\nafter\n") and "old table" not in once
    assert "<br>2.0" in once and "<br>tie [" in once and ".png" not in once
    report.update_readme(readme, step_rows())
    assert readme.read_text() == once
    report.update_readme(readme, step_rows(), [tmp_path / "plots" / "step-throughput.png", tmp_path.parent / "step-elsewhere.png"])
    assert "![step-throughput](plots/step-throughput.png)" in readme.read_text() and "elsewhere" not in readme.read_text()
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match="has no lines"):
        report.update_readme(readme, step_rows())


def test_exported_models_stand_side_by_side_in_the_readme():
    seconds = {"torch eager": [0.2] * 9, "int8": [0.1 + 1e-4 * n for n in range(9)]}
    rows = timing_rows({"suite": "export", "measure": "latency", "case": "1 x 128"}, seconds, ["torch eager"])
    rows = [{**row, **FACTS, "milliseconds": [1e3 * value for value in row["seconds"]]} for row in rows]
    lines = report.readme_lines(rows)
    assert "| ms | torch eager | int8 |" in lines
    assert any(line.startswith("| 1 x 128 | 200 | 100.4<br>1.99x [") for line in lines)


def test_the_projects_readme_has_the_markers():
    text = (report.ROOT / "README.md").read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_no_row_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"suite": "step"}\nnothing\n')
    with pytest.raises(SystemExit, match="line 2"):
        report.read_rows([file])


def test_what_got_slower_is_found(tmp_path, capsys):
    old, new = write(tmp_path / "old.jsonl", step_rows(2.0)), write(tmp_path / "new.jsonl", step_rows(1.7, seed=1))
    assert compare.main([str(old), str(new)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("SLOWER  0.85x") and "bertfast fp32  (relative to transformers fp32)" in lines[0]
    assert sum("SLOWER" in line for line in lines) == 1 and lines[-1].startswith("1 of 3 got slower")
    assert compare.main([str(new), str(old)]) == 0 and "faster  1.1" in capsys.readouterr().out


def test_a_slower_machine_is_not_a_slower_contender():
    slow = [{**row, "samples": [1.3 * value for value in row["samples"]]} for row in step_rows(seed=1)]
    changes, _ = compare.compare(step_rows(), slow)
    verdicts = {change.key[2]: change.verdict for change in changes}
    assert verdicts == {"transformers fp32": "SLOWER", "bertfast fp32": "same", "bertfast bf16": "same"}


def test_what_cannot_be_compared_is_said():
    new = [{**row, "device": "another"} for row in step_rows()[:2]]
    changes, left_out = compare.compare(step_rows(), new)
    assert [change.key[2] for change in changes] == ["bertfast fp32"]
    assert any("only in the old rows" in line for line in left_out) and any("two devices" in line for line in left_out)
