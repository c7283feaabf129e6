"""JSONL, Parquet, TREC's files and the folders of aclImdb."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from pyarrow import parquet

from bertfast.errors import DataError
from bertfast.readers import records
from bertfast.readers.own_formats import read_reviews, read_trec
from bertfast.readers.records import read_jsonl, read_parquet
from bertfast.readers.rows import Columns

COLUMNS = Columns((("text",),), ("label",))
UNLABELLED = Columns((("text",),), ("label",), needs_label=False)


def gathered(blocks):
    """All blocks of a reader as one: texts, labels, lines."""
    blocks = list(blocks)
    texts = [sum(columns, []) for columns in zip(*(block.texts for block in blocks), strict=True)]
    labels = None if blocks[0].labels is None else sum((block.labels for block in blocks), [])
    return texts, labels, [line for block in blocks for line in block.lines]


def written(tmp_path, *lines: str, name="x.jsonl"):
    path = tmp_path / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_jsonl(tmp_path):
    rows = [
        {"text": "naïve 😀", "label": "yes", "other": [1]},
        {"label": 1, "text": ""},
        {"text": "two\nlines", "label": True},
        {"text": "x", "label": 2.5},
    ]
    path = written(tmp_path, *map(json.dumps, rows[:2]), "", *map(json.dumps, rows[2:]))
    assert gathered(read_jsonl(path, COLUMNS)) == ([["naïve 😀", "", "two\nlines", "x"]], ["yes", "1", "true", "2.5"], [1, 2, 4, 5])


def test_jsonl_keys_that_stand_twice(tmp_path):
    path = written(tmp_path, '{"text": "a \\"text\\"", "label": "text"}', '{"text": "b", "label": 1, "n": {"text": 1}}')
    assert gathered(read_jsonl(path, COLUMNS))[:2] == ([['a "text"', "b"]], ["text", "1"])
    path = written(tmp_path, '{"text": "a", "label": 0}', '{"text": "b", "label": 1, "label": 0}')
    with pytest.raises(DataError, match=re.escape(f"{path}, line 2: the key 'label' stands twice; rename one of them")):
        list(read_jsonl(path, COLUMNS))


def test_jsonl_without_labels(tmp_path):
    path = written(tmp_path, '{"text": "a"}')
    assert gathered(read_jsonl(path, UNLABELLED)) == ([["a"]], None, [1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param('{"text": "b", "label"}', "line 2, column 22: not valid JSON", id="no-json"),
        pytest.param('["b", 1]', "line 2: a JSON list; a .jsonl file holds one object a line", id="array"),
        pytest.param(
            '{"txt": "b", "label": 1}', "line 2: there is no column 'text'; the columns are 'txt', 'label'; did you mean 'txt'", id="key"
        ),
        pytest.param('{"text": "b"}', "line 2: there is no column 'label'", id="no-label"),
        pytest.param('{"text": null, "label": 1}', "line 2: the text in column 'text' is missing (null)", id="null-text"),
        pytest.param('{"text": 7, "label": 1}', "line 2: column 'text' holds 7, a int", id="number-for-text"),
        pytest.param('{"text": "b", "label": null}', "line 2: the label in column 'label' is missing (null)", id="null-label"),
        pytest.param('{"text": "b", "label": NaN}', "line 2: the label in column 'label' is missing (NaN)", id="nan-label"),
        pytest.param('{"text": "b", "label": {"a": 1}}', "line 2: the label in column 'label' is a dict", id="object-label"),
        pytest.param('{"text": "b", "label": ["c", null]}', "line 2: the label in column 'label' is missing (null)", id="null-in-a-list"),
        pytest.param('{"text": ' + "[" * 100_000, "line 2: the JSON is nested too deeply", id="deep"),
    ],
)
def test_jsonl_faults(tmp_path, line, message):
    path = written(tmp_path, '{"text": "a", "label": 0}', line)
    with pytest.raises(DataError, match=re.escape(f"{path}, {message}")):
        list(read_jsonl(path, COLUMNS))


@pytest.mark.parametrize("content", ["", "\n\n"], ids=["no-byte", "blank-lines"])
def test_jsonl_empty(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path}: the file is empty"):
        list(read_jsonl(path, COLUMNS))


def parquet_file(tmp_path, **columns):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("block_rows", [1, 3, 100])
def test_parquet(tmp_path, monkeypatch, block_rows):
    monkeypatch.setattr(records, "BLOCK_ROWS", block_rows)
    path = parquet_file(tmp_path, id=[7, 8, 9, 10, 11], label=[0, 1, 2, 1, 0], text=["a", "", "ü", "d", "e"])
    assert gathered(read_parquet(path, COLUMNS)) == ([["a", "", "ü", "d", "e"]], ["0", "1", "2", "1", "0"], [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param(pa.array(["x", "y"]).dictionary_encode(), ["x", "y"], id="categories"),
        pytest.param(pa.array([0.5, 2.0], pa.float32()), ["0.5", "2.0"], id="floats"),
        pytest.param(pa.array([True, False]), ["true", "false"], id="booleans"),
        pytest.param(pa.array([3, 250], pa.uint8()), ["3", "250"], id="small-integers"),
    ],
)
def test_parquet_labels(tmp_path, labels, expected):
    path = parquet_file(tmp_path, text=pa.array(["a", "b"], pa.large_string()), label=labels)
    assert gathered(read_parquet(path, COLUMNS))[1] == expected


@pytest.mark.parametrize(
    ("features", "labels", "names"),
    [
        pytest.param({"label": ClassLabel(names=["neg", "pos"]), "text": Value("string")}, [1, 0], ("neg", "pos"), id="classes"),
        pytest.param({"label": Value("int64"), "text": Value("string")}, [1, 0], None, id="numbers"),
        pytest.param({"label": Value("string"), "text": Value("string")}, ["x", "y"], None, id="names"),
    ],
)
def test_the_names_that_datasets_notes_in_a_parquet_file(tmp_path, features, labels, names):
    path = tmp_path / "x.parquet"
    Dataset.from_dict({"text": ["a", "b"], "label": labels}, Features(features)).to_parquet(path)
    (block,) = read_parquet(path, COLUMNS)
    assert block.class_names == names and block.labels == [str(label) for label in labels]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param(
            {"text": ["a", "b", None], "label": [0, 1, 1]}, ", row 2 (from 0): the text in column 'text' is missing", id="null-text"
        ),
        pytest.param(
            {"text": ["a", "b", "c"], "label": [0, None, 1]}, ", row 1 (from 0): the label in column 'label' is missing", id="null-label"
        ),
        pytest.param(
            {"text": ["a", "b"], "label": [0.5, float("nan")]}, ", row 1 (from 0): the label in column 'label' is missing (NaN)", id="nan"
        ),
        pytest.param({"text": [1, 2], "label": [0, 1]}, ", row 0 (from 0): column 'text' holds 1, a int, where a text", id="numbers"),
        pytest.param(
            {"texts": ["a"], "label": [0]},
            ": there is no column 'text'; the columns are 'texts', 'label'; did you mean 'texts'?",
            id="column",
        ),
        pytest.param(
            {"text": pa.array([], pa.string()), "label": pa.array([], pa.int32())}, ": the file has a header and no rows", id="no-rows"
        ),
    ],
)
def test_parquet_faults(tmp_path, columns, message):
    path = parquet_file(tmp_path, **columns)
    with pytest.raises(DataError, match=re.escape(f"{path}{message}")):
        list(read_parquet(path, COLUMNS))


def test_parquet_with_bytes_that_are_no_utf8(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"]).buffers())
    path = parquet_file(tmp_path, text=broken, label=[0, 1])
    with pytest.raises(DataError, match=rf"{path}, row 1 \(from 0\): column 'text' is not valid UTF-8"):
        list(read_parquet(path, COLUMNS))


def test_parquet_torn(tmp_path):
    path = parquet_file(tmp_path, text=["a"] * 100, label=[0] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{path}: not a whole Parquet file"):
        list(read_parquet(path, COLUMNS))


def test_trec(tmp_path):
    path = tmp_path / "TREC_10.label"
    path.write_bytes("NUM:dist How far is it from Denver to Aspen ?\nENTY:food What is caf\xe9 au lait ?\n".encode("latin-1"))
    texts, labels, lines = gathered(read_trec(path))
    assert texts == [["How far is it from Denver to Aspen ?", "What is café au lait ?"]]
    assert labels == ["NUM", "ENTY"] and lines == [1, 2]


@pytest.mark.parametrize("line", ["What is this ?", "NUM:dist", "NUM How far ?"], ids=["no-class", "no-text", "no-fine-class"])
def test_trec_faults(tmp_path, line):
    path = written(tmp_path, "NUM:dist How far ?", line, name="train_5500.label")
    with pytest.raises(DataError, match=re.escape(f"{path}, line 2: {line!r} does not begin with a class")):
        list(read_trec(path))


def reviews(tmp_path, names=("neg/1_2.txt", "pos/0_9.txt", "pos/10_8.txt")):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"review {name}<br />ü", encoding="utf-8")
    return tmp_path


def test_reviews(tmp_path):
    (block,) = read_reviews(reviews(tmp_path))
    assert block.parts == ["neg/1_2.txt", "pos/0_9.txt", "pos/10_8.txt"] and block.labels == ["neg", "pos", "pos"]
    assert block.texts == [[f"review {part}<br />ü" for part in block.parts]]


def test_reviews_without_one_class(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path / 'neg'}: there is no such folder of .txt files"):
        list(read_reviews(reviews(tmp_path, ["pos/0_9.txt"])))


def test_review_that_is_no_utf8(tmp_path):
    path = reviews(tmp_path) / "pos" / "10_8.txt"
    path.write_bytes(b"one\ntw\xe9")
    with pytest.raises(DataError, match=rf"{path}, line 2: byte 3 of the line \(0xe9\)"):
        list(read_reviews(tmp_path))
