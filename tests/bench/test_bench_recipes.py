"""bench_recipes: rows that the report can read."""

from bench import bench_recipes
from bench.report.page import report


def test_the_report_reads_the_rows():
    speed = {"contender": "bertfast bf16", "tokens_per_second": [1, 2000.5, 3], "peak_bytes": 2e9, "ratios": []}
    held = {"mlm_loss": 2.5, "mlm_accuracy": 0.5}
    found = [
        {"case": "speed", **speed},
        {"case": "MLM", "contender": "all trained", "held_out": held, "steps": 3, "train_seconds": 9.0, "tokens": 7},
        {"case": "IMDb", "contender": "tail", "accuracy": bench_recipes.spread([0.5, 0.75]), "train_seconds": 4, "tokens": 1234},
        {"case": "IMDb", "contender": "head", "accuracy": bench_recipes.spread([0.5]), "train_seconds": 4},
    ]
    shown = bench_recipes.summary(found)
    assert "2000 tokens/s, peak 2.00 GB" in shown and "accuracy 0.6250 +- 0.1768; 4 s, 1,234 tokens read" in shown
    text = "\n".join(report([{"suite": "recipes", **row} for row in found]))
    assert "| MLM | all trained | 2.500 | 0.500 | 3 | 9.0 |" in text and "| IMDb | tail | 0.6250 | 0.1768 | 2 | 4 | 1,234 |" in text
    assert "| speed | bertfast bf16 | 2000.5 | 2.00 |" in text


def test_without_data_it_says_so(monkeypatch, capsys):
    for name in ("BERTFAST_DATA", "BERTFAST_MODELS"):
        monkeypatch.delenv(name, raising=False)
    assert bench_recipes.main([]) == 0 and "recipes: skipped, for want of data" in capsys.readouterr().out
