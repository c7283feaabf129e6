"""Several labels a text, however a file writes them, against scikit-learn's MultiLabelBinarizer."""

import json
import re

import numpy as np
import pandas
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.preprocessing import MultiLabelBinarizer

from bertfast.config.schema import InputConfig, TaskConfig
from bertfast.errors import ConfigError, DataError
from bertfast.readers.splits import load_split
from bertfast.tasks.catalogue import get_task

SETS = [["joy"], [], ["anger", "fear"], ["fear", "joy"], ["fear"], ["joy", "fear", "anger"]]
NAMES = ("anger", "fear", "joy")
TRUTH = MultiLabelBinarizer(classes=NAMES).fit_transform(SETS)
TEXTS = [f"text {index}" for index in range(len(SETS))]
LISTS = {"text": TEXTS, "label": SETS}
MARKS = {"text": TEXTS} | {name: TRUTH[:, column].tolist() for column, name in enumerate(NAMES)}


def read(path, split="train", **task):
    return load_split(TaskConfig(text_columns=("text",), **task), InputConfig(data_file=str(path)), split)


def jsonl(path, columns):
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path, columns, schema=None):
    parquet.write_table(pa.table(columns, schema=schema), path)
    return path


def csv(path, columns, **options):
    pandas.DataFrame(columns).to_csv(path, index=False, **options)
    return path


def joined(mark):
    return {"text": TEXTS, "label": [mark.join(labels) for labels in SETS]}


FORMS = {
    "jsonl-lists": (lambda folder: jsonl(folder / "x.jsonl", LISTS), {}),
    "parquet-lists": (lambda folder: table(folder / "x.parquet", LISTS), {}),
    "csv-lists-of-python": (lambda folder: csv(folder / "x.csv", {"text": TEXTS, "label": list(map(str, SETS))}), {"labels": "several"}),
    "csv-lists-of-json": (
        lambda folder: csv(folder / "x.csv", {"text": TEXTS, "label": list(map(json.dumps, SETS))}),
        {"labels": "several"},
    ),
    "csv-bars": (lambda folder: csv(folder / "x.csv", joined("|")), {"labels": "several"}),
    "csv-semicolons": (lambda folder: csv(folder / "x.csv", joined("; ")), {"labels": "several"}),
    "csv-commas": (lambda folder: csv(folder / "x.csv", joined(",")), {"labels": "several"}),
    "tsv-a-separator-of-its-own": (lambda folder: csv(folder / "x.tsv", joined(" and "), sep="\t"), {"label_separator": " and "}),
    "csv-marks": (lambda folder: csv(folder / "x.csv", MARKS), {"label_columns": NAMES}),
    "csv-marks-with-decimals": (
        lambda folder: csv(
            folder / "x.csv", {name: [float(v) for v in values] if name in NAMES else values for name, values in MARKS.items()}
        ),
        {"label_columns": NAMES},
    ),
    "csv-truths": (
        lambda folder: csv(
            folder / "x.csv", {name: [bool(v) for v in values] if name in NAMES else values for name, values in MARKS.items()}
        ),
        {"label_columns": NAMES},
    ),
    "jsonl-marks": (lambda folder: jsonl(folder / "x.jsonl", MARKS), {"label_columns": NAMES}),
    "parquet-marks": (lambda folder: table(folder / "x.parquet", MARKS), {"label_columns": NAMES}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_alike(tmp_path, form):
    write, keys = FORMS[form]
    raw = read(write(tmp_path), **keys)
    assert raw.task.is_multilabel and raw.task.label_names == NAMES and raw.task.main_metric == "micro_f1"
    assert raw.labels.dtype == np.uint8 and raw.labels.tolist() == TRUTH.tolist()
    again = read(write(tmp_path), split="dev", **(keys | {"label_names": NAMES, "labels": "several"}))
    assert again.labels.tolist() == TRUTH.tolist()


def test_names_are_in_the_order_that_is_given(tmp_path):
    order = ("joy", "anger", "fear")
    wanted = MultiLabelBinarizer(classes=order).fit_transform(SETS).tolist()
    assert read(jsonl(tmp_path / "x.jsonl", LISTS), label_names=order).labels.tolist() == wanted
    assert read(csv(tmp_path / "x.csv", MARKS), label_columns=order).labels.tolist() == wanted
    renamed = read(csv(tmp_path / "x.csv", MARKS), label_columns=order, label_names=("j", "a", "f"))
    assert renamed.task.label_names == ("j", "a", "f") and renamed.labels.tolist() == wanted


def test_numbers_are_sorted_as_numbers_and_stand_for_names(tmp_path):
    numbers = [[10], [9, 2], [], [2, 10]]
    raw = read(jsonl(tmp_path / "x.jsonl", {"text": TEXTS[:4], "label": numbers}))
    assert raw.task.label_names == ("2", "9", "10")
    assert raw.labels.tolist() == MultiLabelBinarizer(classes=[2, 9, 10]).fit_transform(numbers).tolist()
    by_number = [[NAMES.index(name) for name in labels] for labels in SETS]
    raw = read(jsonl(tmp_path / "x.jsonl", {"text": TEXTS, "label": by_number}), label_names=NAMES, labels="several")
    assert raw.labels.tolist() == TRUTH.tolist()


@pytest.mark.parametrize("kind", ["List", "Sequence"])
def test_a_parquet_file_names_its_labels(tmp_path, kind):
    """As the library `datasets` writes a list of ClassLabel, in its newer and its older form."""
    feature = {"feature": {"names": list(NAMES), "_type": "ClassLabel"}, "_type": kind}
    facts = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": feature}}}
    schema = pa.schema([("text", pa.string()), ("label", pa.list_(pa.int64()))], {"huggingface": json.dumps(facts)})
    numbers = [[NAMES.index(name) for name in labels] for labels in SETS]
    raw = read(table(tmp_path / "x.parquet", {"text": TEXTS, "label": numbers}, schema))
    assert raw.task.label_names == NAMES and raw.labels.tolist() == TRUTH.tolist()


def test_datasets_own_files_are_read(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=list(NAMES)))})
    datasets.Dataset.from_dict(LISTS, features=features).to_parquet(str(tmp_path / "x.parquet"))
    raw = read(tmp_path / "x.parquet")
    assert raw.task.label_names == NAMES and raw.labels.tolist() == TRUTH.tolist()


@pytest.mark.parametrize("kind", [int, float, bool])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_lists_of_marks_are_marks_and_no_numbers(tmp_path, kind, form):
    """A mark for each label in a list, as `datasets` and transformers have them."""
    columns = {"text": TEXTS, "label": [[kind(mark) for mark in row] for row in TRUTH.tolist()]}
    path = (jsonl if form == "jsonl" else table)(tmp_path / f"x.{form}", columns)
    assert read(path, label_names=NAMES).labels.tolist() == TRUTH.tolist()
    with pytest.raises(
        DataError, match="the labels are lists of 3 marks, 0 and 1 throughout; task.label_names must say what each mark stands for"
    ):
        read(path)
    with pytest.raises(DataError, match="and names 2 labels"):
        read(path, label_names=("a", "b"))


def test_numbers_of_few_rows_are_no_marks(tmp_path):
    """A small set in which every row happens to have the labels 0 and 1, of three."""
    raw = read(jsonl(tmp_path / "x.jsonl", {"text": TEXTS[:2], "label": [[0, 1], [1, 0]]}), label_names=NAMES)
    assert raw.labels.tolist() == [[1, 1, 0], [1, 1, 0]]


def test_a_list_of_fixed_length_has_names_too(tmp_path):
    feature = {"feature": {"names": list(NAMES), "_type": "ClassLabel"}, "length": 2, "_type": "List"}
    facts = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": feature}}}
    schema = pa.schema([("text", pa.string()), ("label", pa.list_(pa.int64(), 2))], {"huggingface": json.dumps(facts)})
    raw = read(table(tmp_path / "x.parquet", {"text": TEXTS[:2], "label": [[0, 2], [1, 2]]}, schema))
    assert raw.task.label_names == NAMES and raw.labels.tolist() == [[1, 0, 1], [0, 1, 1]]


def test_a_separator_that_is_named_makes_brackets_a_part_of_names(tmp_path):
    path = csv(tmp_path / "x.csv", {"text": TEXTS[:3], "label": ["[A]|[B]", "[B]", ""]})
    raw = read(path, label_separator="|")
    assert raw.task.label_names == ("[A]", "[B]") and raw.labels.tolist() == [[1, 1], [0, 1], [0, 0]]


def test_the_metric_that_was_asked_for_is_not_dropped(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", LISTS)
    assert read(path, label_names=NAMES, metric="samples_f1").task.main_metric == "samples_f1"
    for keys in ({}, {"label_names": NAMES}):
        with pytest.raises(ConfigError, match="metric = 'accuracy', but a text has several labels"):
            read(path, metric="accuracy", **keys)


def test_one_label_a_text_is_as_before(tmp_path):
    raw = read(csv(tmp_path / "x.csv", {"text": TEXTS, "label": ["a|b", "c", "a|b", "c", "c", "c"]}))
    assert not raw.task.is_multilabel and raw.task.label_names == ("a|b", "c") and raw.labels.ndim == 1


def test_known_labels_tell_what_separates_them(tmp_path):
    labels = ["art, music|sport", "sport", "", "art, music"]
    path = csv(tmp_path / "x.csv", {"text": TEXTS[:4], "label": labels})
    raw = read(path, label_names=("art, music", "sport"), labels="several")
    assert raw.labels.tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]]
    with pytest.raises(
        ConfigError, match=r"the labels hold '\|' and ','; which of them stands between two labels\? Set task.label_separator = '\|'"
    ):
        read(path, labels="several")


def test_labels_that_are_withheld_count_as_none(tmp_path):
    path = csv(tmp_path / "x.csv", {"text": TEXTS[:2], "anger": [-1, -1], "joy": [-1, -1]})
    assert read(path, split="test", label_columns=("anger", "joy")).labels is None
    path = csv(tmp_path / "y.csv", {"text": TEXTS[:2]})
    assert read(path, split="test", label_columns=("anger", "joy")).labels is None


FAULTS = [
    pytest.param("jsonl", [["a"], "b"], {}, "line 2: the label is 'b', and other rows have lists of labels", id="a-name-among-lists"),
    pytest.param("jsonl", [["a", "b"], ["a", " "]], {}, "line 2: a label in the list is empty", id="an-empty-label"),
    pytest.param("jsonl", [["a", "b"], ["a", "NaN"]], {}, "line 2: a label is NaN", id="nan"),
    pytest.param(
        "jsonl", [["a"], ["a"]], {}, "line 1: the only label is 'a', and a classifier of several labels needs two", id="one-label"
    ),
    pytest.param("jsonl", [[], []], {}, "line 1: no row has a label", id="no-label"),
    pytest.param("jsonl", [["a"], ["c"]], {"label_names": ("a", "b")}, "line 2: unknown label 'c'; the labels are 'a', 'b'", id="unknown"),
    pytest.param(
        "csv", ["['a' 'b']", "['a']"], {"labels": "several"}, "line 2: \"['a' 'b']\" has no commas between its labels", id="numpy"
    ),
    pytest.param(
        "csv", ["['a','b']", "a"], {"labels": "several"}, "line 3: the label is 'a', and other rows have lists", id="a-field-among-lists"
    ),
    pytest.param("csv", ["[a]", "[b]"], {"labels": "several"}, "line 2: '[a]' is no list of labels", id="no-list"),
    pytest.param("csv", ["['a', ['b']]", "['a']"], {"labels": "several"}, "is no list of names or numbers", id="a-list-in-a-list"),
]


@pytest.mark.parametrize("kind, labels, keys, message", FAULTS)
def test_faults_are_named(tmp_path, kind, labels, keys, message):
    path = (jsonl if kind == "jsonl" else csv)(tmp_path / f"x.{kind}", {"text": TEXTS[: len(labels)], "label": labels})
    with pytest.raises(DataError, match=re.escape(message)):
        read(path, **keys)


@pytest.mark.parametrize("mark", ["2", "", "yes", "0.5"])
def test_marks_are_0_or_1(tmp_path, mark):
    path = csv(tmp_path / "x.csv", {"text": TEXTS[:2], "anger": ["1", mark], "joy": ["0", "1"]})
    with pytest.raises(DataError, match=re.escape(f"x.csv, line 3: column 'anger' holds {mark!r}; of several labels each column holds 1")):
        read(path, label_columns=("anger", "joy"))


def test_a_column_of_marks_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no column 'disgust'; the columns are 'text', 'anger'"):
        read(csv(tmp_path / "x.csv", MARKS), label_columns=("anger", "disgust"))


def test_lists_for_a_task_of_one_label(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", LISTS)
    for keys in ({"labels": "one"}, {"kind": "regression"}):
        with pytest.raises(ConfigError, match="its data hold lists of labels"):
            read(path, **keys)
    path = jsonl(tmp_path / "x.jsonl", {"sentence": TEXTS, "label": SETS})
    with pytest.raises(ConfigError, match="task sst2 is of one label a text, and its data hold lists of labels; give one label a row"):
        load_split("sst2", InputConfig(data_file=str(path)), "train")


CONTRADICTIONS = [
    pytest.param({"labels": "one", "label_columns": ("a", "b")}, "labels = 'one', but label_columns is of several", id="one-and-columns"),
    pytest.param({"labels": "one", "label_separator": "|"}, "labels = 'one', but label_separator is of several", id="one-and-a-separator"),
    pytest.param({"labels": "several", "kind": "regression"}, "kind = 'regression' is of one score a text", id="regression"),
    pytest.param(
        {"label_columns": ("a", "b"), "label_separator": "|"}, "label_columns has a column for each label", id="columns-and-a-separator"
    ),
    pytest.param({"label_columns": ("a", "b"), "label_names": ("a", "b", "c")}, "2 label_columns and 3 label_names", id="names-of-columns"),
    pytest.param({"label_columns": ("a", "text")}, "the column 'text' stands twice in text_columns and label_columns", id="twice"),
]


@pytest.mark.parametrize("keys, message", CONTRADICTIONS)
def test_keys_that_contradict_each_other(keys, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        get_task(TaskConfig(text_columns=("text",), **keys))
