"""bench_step in small: rows of two contenders."""

import json

from bench import bench_step
from bench.contests.peers import BASELINE
from tests.support.runs import need_deepspeed


def test_a_small_run(tmp_path, capsys):
    need_deepspeed()
    output = tmp_path / "rows.jsonl"
    contenders = [BASELINE, "bertfast fp32, bare loop"]
    words = ["--models", "tiny", "--lengths", "sst2", "--batches", "2", "--rounds", "8", "--steps", "1", "--device", "cpu"]
    assert bench_step.main([*words, "--output", str(output), "--contenders", *contenders]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["contender"] for row in rows] == contenders and not [row for row in rows if "fault" in row]
    assert all(len(row["samples"]) == 8 and row["seed"] == 42 and row["commit"] and row["peak_bytes"] > 0 for row in rows)
    assert rows[1]["ratios"][0]["to"] == BASELINE and len(rows[1]["losses_without_dropout"]) == 3
    assert "tiny, sst2, batch 2" in capsys.readouterr().out
