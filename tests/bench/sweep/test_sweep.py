"""bench.sweep in small: every candidate runs and is held to the default, and a wrong one is named."""

import json

import pytest

from bench.sweep import __main__ as sweep
from tests.support.triton_cases import needs_triton

pytestmark = needs_triton


@pytest.fixture
def swept(tmp_path):
    """swept(words): (exit code, rows, winners)."""

    def run(*words):
        output, table = tmp_path / "rows.jsonl", tmp_path / "table.json"
        code = sweep.main(["--tiny", "--rounds", "1", "--output", str(output), "--table", str(table), *words])
        return code, [json.loads(line) for line in output.read_text().splitlines()], json.loads(table.read_text())

    return run


def test_every_kernel_has_candidates_that_run(swept, capsys):
    code, rows, table = swept()
    assert code == 0 and "0 wrong, 0 with a fault" in capsys.readouterr().out
    kernels = {row["kernel"] for row in rows}
    assert kernels >= {"layer_norm_backward", "layer_norm_forward", "bias_gelu_backward", "embedding_sums", "sum_partials"}
    assert kernels >= {"short_forward", "short_backward", "medium_forward", "medium_backward"}
    assert kernels >= {"long_forward", "long_backward_queries", "long_backward_keys"}
    for case in {row["case"] for row in rows}:
        assert sum(row["case"] == case for row in rows) > 1, case
    (winners,) = table.values()
    assert winners.keys() == {row["case"] for row in rows} and all(winner["default"] > 0 for winner in winners.values())


def test_a_wrong_candidate_is_named(swept, monkeypatch, capsys):
    from bench.sweep.candidates import Change

    monkeypatch.setattr("bench.sweep.row_candidates._named", lambda tiles: {"half": Change({}, {"D": 24})})
    code, rows, table = swept("--only", "layer_norm_backward")
    assert code == 1 and "WRONG" in capsys.readouterr().out
    assert [row["right"] for row in rows] == [True, False] and "microseconds" not in rows[1]
    assert [winner["candidate"] for winners in table.values() for winner in winners.values()] == ["default"]
