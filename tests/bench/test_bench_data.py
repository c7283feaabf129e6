"""bench_data in small: both sides take the same rows."""

from bench.bench_data import measure_tokenising
from tests.support.tiny_bert import write_tiny_bert


def test_tokenising_is_compared_on_the_same_rows(tmp_path):
    rows = [f"{i}\tthe film {'is good ' * (i % 90)}\tnot bad\tneutral\n" for i in range(600)]
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "MNLI" / "train.tsv").write_text("index\tsentence1\tsentence2\tgold_label\n" + "".join(rows))
    found = measure_tokenising(tmp_path, str(write_tiny_bert(tmp_path / "tiny")), 550, 2)
    assert [row["contender"] for row in found] == ["transformers", "bertfast", "bertfast, file to cache"]
    assert {row["pairs"] for row in found} == {550} and len({row["tokens"] for row in found}) == 1
    assert all(low <= median <= high for row in found for low, median, high in [row["pairs_per_second"]])
    assert found[1]["ratios"][0]["value"] is None  # two repeats are too few for a ratio
