"""bench.compare: what got slower is found, and what cannot be compared is said."""

from bench.compare.__main__ import main
from bench.compare.changes import compare
from tests.bench.step_rows import step_rows, write


def test_what_got_slower_is_found(tmp_path, capsys):
    old, new = write(tmp_path / "old.jsonl", step_rows(2.0)), write(tmp_path / "new.jsonl", step_rows(1.7, seed=1))
    assert main([str(old), str(new)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("SLOWER  0.85x") and "bertfast fp32  (relative to transformers fp32)" in lines[0]
    assert sum("SLOWER" in line for line in lines) == 1 and lines[-1].startswith("1 of 3 got slower")
    assert main([str(new), str(old)]) == 0 and "faster  1.1" in capsys.readouterr().out


def test_a_slower_machine_is_not_a_slower_contender():
    slow = [{**row, "samples": [1.3 * value for value in row["samples"]]} for row in step_rows(seed=1)]
    changes, _ = compare(step_rows(), slow)
    verdicts = {change.key[2]: change.verdict for change in changes}
    assert verdicts == {"transformers fp32": "SLOWER", "bertfast fp32": "same", "bertfast bf16": "same"}


def test_what_cannot_be_compared_is_said():
    new = [{**row, "device": "another"} for row in step_rows()[:2]]
    changes, left_out = compare(step_rows(), new)
    assert [change.key[2] for change in changes] == ["bertfast fp32"]
    assert any("only in the old rows" in line for line in left_out) and any("two devices" in line for line in left_out)
