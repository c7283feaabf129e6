"""The suites for pytest-benchmark, in small: `pytest bench/ --benchmark-only`. Each is timed once as a whole; its own rows are what counts."""

import importlib

import pytest

SUITES = {
    "packing": ["--quick"],
    "step": ["--quick", "--models", "tiny", "--lengths", "sst2", "--batches", "4"],
    "inference": ["--quick", "--size", "tiny", "--only", "bertfast optimized"],
    "scale": ["--quick", "--parts", "cost"],
}


@pytest.mark.parametrize("name", SUITES)
def run_suite(benchmark, name, tmp_path):
    suite = importlib.import_module(f"bench.bench_{name}")
    words = [*SUITES[name], "--output", str(tmp_path / "rows.jsonl")]
    assert benchmark.pedantic(suite.main, args=(words,), rounds=1) == 0
    assert (tmp_path / "rows.jsonl").stat().st_size
