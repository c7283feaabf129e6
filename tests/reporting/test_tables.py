"""The input's columns and the answers beside them: read back by pandas, which knows nothing of how they were written."""

import io

import numpy as np
import pytest

from bertfast.cli.flags import FLAGS
from bertfast.config.schema import TaskConfig
from bertfast.errors import ConfigError, NonFiniteLossError
from bertfast.reporting.predictions import FORMATS, choose_format, output_name, write_predictions
from bertfast.reporting.tables import Given, added_names
from bertfast.tasks.catalogue import get_task

pandas = pytest.importorskip("pandas")

MOOD = get_task(TaskConfig(name="mood", text_columns=("text",), label_names=("sad", 'so "so", or\nnot')))
STARS = get_task(TaskConfig(name="stars", text_columns=("text",), metric="pearson"))
LOGITS = np.array([[0.0, np.log(3)], [5.0, -5.0], [0.25, 0.5], [1.0, 1.0], [-1.0, 2.0], [9.0, -9.0]])
TEXTS = ["plain", 'a "quoted", one', "two\nlines", "a\rlone return", "", "  blanks, \t and tabs  "]


def read_back(path):
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    return pandas.read_csv(path, dtype={"text": str, "id": str}, keep_default_na=False)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_every_column_comes_back(tmp_path, format):
    given = Given(("id", "text", "label"), [[f"00{row}", text, "x"] for row, text in enumerate(TEXTS)])
    write_predictions(tmp_path / f"a.{format}", MOOD, LOGITS, format, given)
    found = read_back(tmp_path / f"a.{format}")
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    assert list(found.columns) == ["id", "text", "label", "prediction", "probability_sad", 'probability_so "so", or\nnot']
    assert list(found["text"]) == TEXTS and list(found["id"]) == [f"00{row}" for row in range(6)]
    assert np.abs(found.iloc[:, 4:].to_numpy() - expected).max() <= 5.1e-7
    assert list(found["prediction"]) == [MOOD.class_names[best] for best in LOGITS.argmax(axis=1)]


def test_a_tsv_is_written_without_quotes(tmp_path):
    given = Given(("text",), [['say "hi"'], ["so"]])
    write_predictions(tmp_path / "a.tsv", STARS, np.array([[1.5], [-0.25]]), "tsv", given)
    assert (tmp_path / "a.tsv").read_bytes() == b'text\tprediction\nsay "hi"\t1.5\nso\t-0.25\n'


@pytest.mark.parametrize("text", ["a\ttab", "a\nbreak", "a\rreturn"])
def test_what_a_tsv_cannot_hold_is_named_and_nothing_is_written(tmp_path, text):
    with pytest.raises(ConfigError, match="holds a tab or a line break.*--format csv"):
        write_predictions(tmp_path / "a.tsv", STARS, np.array([[1.0]]), "tsv", Given(("text",), [[text]]))
    assert not list(tmp_path.iterdir())


def test_values_of_json_keep_their_type_in_parquet_and_their_spelling_in_csv(tmp_path):
    rows = [[1, None, ["a"], "x"], [2, 0.5, {"b": True}, 3]]
    for format in ("csv", "parquet"):
        write_predictions(tmp_path / f"a.{format}", STARS, np.array([[1.0], [2.0]]), format, Given(("id", "score", "deep", "mixed"), rows))
    typed, text = pandas.read_parquet(tmp_path / "a.parquet"), pandas.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    assert typed["id"].tolist() == [1, 2] and np.isnan(typed["score"][0]) and typed["mixed"].tolist() == ["x", "3"]
    assert text.to_numpy().tolist() == [["1", "", '["a"]', "x", "1.0"], ["2", "0.5", '{"b": true}', "3", "2.0"]]


def test_a_name_that_is_taken_is_not_given_twice(tmp_path):
    assert added_names(["text", "prediction", "prediction_2"], ["prediction", "probability_a"]) == ["prediction_3", "probability_a"]
    given = Given(("prediction", "text"), [["old", "a"]])
    write_predictions(tmp_path / "a.csv", STARS, np.array([[1.0]]), "csv", given)
    assert (tmp_path / "a.csv").read_text() == "prediction,text,prediction_2\nold,a,1.0\n"


def test_without_a_table_rows_are_numbered(tmp_path):
    write_predictions(tmp_path / "a.csv", STARS, np.array([[1.0], [2.0]]), "csv")
    assert (tmp_path / "a.csv").read_text() == "index,prediction\n0,1.0\n1,2.0\n"


def test_a_table_that_breaks_off_leaves_the_file_that_was_there(tmp_path):
    def rows():
        yield ["a"]
        raise ConfigError("gone")

    (tmp_path / "a.csv").write_text("whole")
    for logits, error in ((np.array([[1.0], [2.0]]), ConfigError), (np.array([[np.nan]]), NonFiniteLossError)):
        with pytest.raises(error):
            write_predictions(tmp_path / "a.csv", STARS, logits, "csv", Given(("text",), rows()))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.csv": "whole"}


@pytest.mark.parametrize(
    "output, expected",
    [("a.csv", "csv"), ("A.CSV", "csv"), ("a.parquet", "parquet"), ("a.json", "jsonl"), ("answers", "jsonl"), ("/dev/stdout", "jsonl")],
)
def test_the_format_follows_the_suffix(output, expected):
    assert choose_format(None, output) == expected and choose_format("tsv", output) == "tsv"


@pytest.mark.parametrize("output", ["a.xlsx", "a.csv.gz", "a.txt"])
def test_a_suffix_that_says_nothing_is_named(output):
    with pytest.raises(ConfigError, match=r"--output a.*no format is known by the suffix '\.(xlsx|gz|txt)'.*--format"):
        choose_format(None, output)


def test_the_flag_takes_every_format():
    (flag,) = (flag for flag in FLAGS if flag.names == ("--format",))
    assert tuple(flag.options["choices"]) == FORMATS and all(name in flag.help for name in FORMATS)
    assert [output_name(STARS, "test", format) for format in FORMATS] == [
        *(f"stars.{name}" for name in ("csv", "tsv", "parquet", "jsonl", "tsv"))
    ]


def test_a_table_goes_to_an_open_file_too():
    from bertfast.reporting.predictions import write_to

    file = io.StringIO()
    write_to(file, STARS, np.array([[1.0]]), "csv", Given(("text",), [["a"]]))
    assert file.getvalue() == "text,prediction\na,1.0\n"
