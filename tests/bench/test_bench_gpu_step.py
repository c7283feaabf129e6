"""bench_gpu_step in small, on a CPU: each part writes the rows that it is there for."""

import json

import pytest

from bench import bench_gpu_step
from tests.support.runs import need_deepspeed


def rows_of(tmp_path, *words):
    need_deepspeed()
    output = tmp_path / "rows.jsonl"
    assert bench_gpu_step.main(["--tiny", "--device", "cpu", "--precisions", "bf16", "--output", str(output), *words]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(row["commit"] and row["command"] and row["seed"] == 42 for row in rows)
    return rows


def test_busy_and_losses(tmp_path):
    rows = rows_of(tmp_path, "--parts", "busy", "losses", "--rounds", "2", "--loss-steps", "3")
    busy, losses = ([row for row in rows if row["part"] == part] for part in ("busy", "losses"))
    assert [row["contender"] for row in busy] == ["bertfast bf16", "bertfast bf16, graphs"]
    assert all(0 < row["busy_while_profiled"] <= 1 and row["kernel_ms"] > 0 for row in busy)
    off = {row["contender"]: row["differences"]["largest"] for row in losses}
    assert off["plain, again"] == 0 < off["plain, reordered"]


def test_epochs(tmp_path):
    (row,) = rows_of(tmp_path, "--parts", "epochs", "--examples", "60", "--epoch-batch", "16")
    assert row["seconds"] == pytest.approx(sum(row["where"].values()), rel=0.01) and min(row["where"].values()) > 0
    assert row["training"]["examples"] == 60 and row["seconds_of_three_mnli_epochs"] > row["seconds"]
