"""bench.report: the page and its plots, and the page that is kept."""

import re

import pytest

from bench import ROOT
from bench.report.__main__ import main
from bench.report.gpu_tables import GPU_TABLES
from bench.report.page import report
from bench.report.plots import PLOTS
from bench.report.rows import RESULTS, read_rows
from bench.report.tables import TABLES
from tests.bench.step_rows import FACTS, step_rows, write


def test_plots_and_page(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [*step_rows(), *({**row, "batch_size": 64, "case": "tiny, sst2, batch 64"} for row in step_rows())]
    curve = {
        "suite": "task",
        "task": "sst2",
        "case": "sst2",
        "contender": "bertfast fp32",
        "metrics": {"dev": {"accuracy": 0.9}},
        "rows": 64,
        "epochs": 1,
    }
    rows.append({**curve, "train_seconds": 2.0, "samples_per_second": 90.0, "curve": [[1, 0.5], [2, 0.8]], **FACTS})
    file = write(tmp_path / "rows.jsonl", rows)
    assert main([str(file), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "![step-throughput](step-throughput.png)" in page and "![task-time_to_score](task-time_to_score.png)" in page
    assert (tmp_path / "out" / "step-throughput.png").read_bytes().startswith(b"\x89PNG") and "accuracy 0.9000" in page
    assert not (tmp_path / "out" / "kernels-roofline.png").exists()


def test_the_curve_of_agreement_against_speed(tmp_path):
    pytest.importorskip("matplotlib")
    common = {"suite": "inference", "texts": 100, "case": "SST-2, whole file, tokenising out", "ratios": [], "samples": [1.0], **FACTS}
    common |= {
        "largest_difference": 0.1,
        "alone_difference": 0.0,
        "resident_bytes": 1e8,
        "peak_bytes": 1e8,
        "file_bytes": 1e7,
        "milliseconds": [1, 2, 3],
    }
    rows = [
        {**common, "contender": name, "same": same, "seconds": [1, 2, 3]}
        for name, same in (("OpenVINO int8", 0.99), ("bertfast int8", 1.0))
    ]
    assert main([str(write(tmp_path / "rows.jsonl", rows)), "--output", str(tmp_path / "out")]) == 0
    assert "![inference-agreement](inference-agreement.png)" in (tmp_path / "out" / "report.md").read_text()
    assert main([str(write(tmp_path / "more.jsonl", [{**rows[0], "case": "one text"}])), "--output", str(tmp_path / "none")]) == 0
    assert not (tmp_path / "none" / "inference-agreement.png").exists()


def test_the_rows_that_are_kept_can_be_reported():
    files = sorted(RESULTS.glob("*.jsonl"))
    rows = read_rows(files)
    assert {row["suite"] for row in rows} >= {"step", "task", "data"}
    page = report(rows)
    assert {f"## {(TABLES | GPU_TABLES)[suite][0]}" for suite in {row["suite"] for row in rows}} <= set(page)


def test_the_page_that_is_kept_is_that_of_the_rows():
    """Whoever adds a row runs `python -m bench.report`."""
    rows = read_rows(sorted(RESULTS.glob("*.jsonl")))
    plots = [RESULTS / f"{name}.png" for name in PLOTS if (RESULTS / f"{name}.png").is_file()]
    assert (RESULTS / "report.md").read_text() == "\n".join(report(rows, plots)) + "\n"


def test_every_kept_row_says_where_it_comes_from():
    rows = read_rows(sorted(RESULTS.glob("*.jsonl")))
    assert not [row for row in rows if not all(row.get(key) for key in ("device", "versions", "commit", "command"))]


def test_the_readme_quotes_rows_that_are_kept():
    """The README's one table is picked by hand: eight rows, and each ratio, tie or share of real tokens stands in the page just so."""
    text, page = (ROOT / "README.md").read_text(), (RESULTS / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 8
    for line in lines[1:]:
        quoted = re.findall(r"(?:tie|\d+\.\d\dx) \[\d+\.\d\d, \d+\.\d\d\]|\d+\.\d+%", line)
        assert quoted or "no ratio" in line, line
        assert all(ratio in page for ratio in quoted), line
