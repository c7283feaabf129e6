"""bench.report.rows: rows are read, and what is none is named."""

import pytest

from bench.report.rows import read_rows


def test_no_row_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"suite": "step"}\nnothing\n')
    with pytest.raises(SystemExit, match="line 2"):
        read_rows([file])
