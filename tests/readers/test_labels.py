"""Labels as files spell them, and the class ids or scores that they become."""

from __future__ import annotations

import re

import numpy as np
import pandas
import pytest

from bertfast.config.schema import TaskConfig
from bertfast.errors import ConfigError, DataError
from bertfast.readers.labels.classes import MAX_INFERRED_CLASSES
from bertfast.readers.labels.table import LabelTable
from bertfast.tasks.catalogue import get_task

UNKNOWN = get_task(TaskConfig(text_columns=("text",)))


def resolved(task, labels, first_label=0, hidden=False, block=2):
    """The completed task and the labels, added in blocks; rows are called "x, line 1" on."""
    table = LabelTable()
    for begin in range(0, len(labels), block):
        table.add(labels[begin : begin + block])
    return table.resolve(task, lambda row: f"x, line {row + 1}", first_label, hidden)


def own(*names):
    return get_task(TaskConfig(text_columns=("text",), label_names=names))


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        pytest.param("mnli", ["neutral", "entailment", "contradiction"], [1, 0, 2], id="names"),
        pytest.param("mnli", ["2", "neutral", "0"], [2, 1, 0], id="numbers-and-names"),
        pytest.param("sst2", ["1", " 0", "positive"], [1, 0, 1], id="blanks-around"),
        pytest.param("sst2", ["1.0", "0.0", "1"], [1, 0, 1], id="floats-that-are-whole"),
        pytest.param(own("10", "20"), ["20", "10", "20"], [1, 0, 1], id="names-that-are-numbers"),
        pytest.param(own("1", "0"), ["1", "0", "0.0"], [0, 1, 1], id="names-that-look-like-other-classes"),
        pytest.param(own("nan", "x"), ["nan", "x", "nan"], [0, 1, 0], id="a-class-called-nan"),
    ],
)
def test_classes(task, labels, expected):
    completed, ids = resolved(get_task(task), labels)
    assert completed == get_task(task) and ids.dtype == np.int32 and ids.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        pytest.param(["1", "0", "2", "1"], ("0", "1", "2"), [1, 0, 2, 1], id="integers"),
        pytest.param(["3", "1", "3"], ("1", "3"), [1, 0, 1], id="integers-with-gaps"),
        pytest.param(["10", "9", "110"], ("9", "10", "110"), [1, 0, 2], id="integers-are-sorted-as-numbers"),
        pytest.param(["02", "01", "10"], ("01", "02", "10"), [1, 0, 2], id="codes-keep-their-zeros"),
        pytest.param(["001", "1", "0"], ("0", "001", "1"), [1, 2, 0], id="codes-of-one-number"),
        pytest.param(["yes ", "yes", "no"], ("no", "yes"), [1, 1, 0], id="blanks-around"),
        pytest.param(["NA", "EU", "None"], ("EU", "NA", "None"), [1, 0, 2], id="names-that-mean-nothing-elsewhere"),
        pytest.param(["true", "false", "true"], ("false", "true"), [1, 0, 1], id="truths"),
        pytest.param(["spam", "ham", "spam"], ("ham", "spam"), [1, 0, 1], id="strings-are-sorted"),
        pytest.param(["b", "1", "a"], ("1", "a", "b"), [2, 0, 1], id="strings-and-numbers"),
    ],
)
def test_inferred_classes(labels, names, ids):
    task, found = resolved(UNKNOWN, labels)
    assert task.label_names == names and task.num_labels == len(names) and not task.is_regression
    assert found.dtype == np.int32 and found.tolist() == ids


@pytest.mark.parametrize(
    "labels",
    [["1.5", "2", "-0.25"], ["1.0", "2.0"], ["1e-3", "2"]],
    ids=["floats", "whole-floats", "exponents"],
)
def test_floats_mean_regression(labels):
    task, scores = resolved(UNKNOWN, labels)
    assert task.is_regression and task.metrics[0] == "pearson"
    assert scores.dtype == np.float32 and scores.tolist() == [np.float32(label) for label in labels]


def of_kind(kind, **more):
    return get_task(TaskConfig(text_columns=("text",), kind=kind, **more))


@pytest.mark.parametrize(
    ("task", "labels", "names", "ids"),
    [
        pytest.param(of_kind("classification"), ["1.0", "0.0", "1.0"], ("0", "1"), [1, 0, 1], id="whole-floats"),
        pytest.param(of_kind(None, metric="macro_f1"), ["1.0", "0.0", "1.0"], ("0", "1"), [1, 0, 1], id="whole-floats-by-the-metric"),
        pytest.param(of_kind("classification"), ["1", "0.0", "1."], ("0", "1"), [1, 0, 1], id="whole-numbers-of-both-spellings"),
        pytest.param(of_kind("classification"), ["10.5", "9.25", "10"], ("9.25", "10", "10.5"), [2, 0, 1], id="fractions"),
        pytest.param(of_kind("classification"), ["-1", "1", "0"], ("-1", "0", "1"), [0, 2, 1], id="negative"),
        pytest.param(of_kind("classification"), [str(i) for i in range(30)], tuple(map(str, range(30))), list(range(30)), id="a-row-each"),
        pytest.param(
            of_kind("classification"),
            [f"{i:04}" for i in range(MAX_INFERRED_CLASSES + 1)],
            tuple(f"{i:04}" for i in range(MAX_INFERRED_CLASSES + 1)),
            list(range(MAX_INFERRED_CLASSES + 1)),
            id="very-many",
        ),
    ],
)
def test_classes_that_the_config_says_are_such(task, labels, names, ids):
    found, values = resolved(task, labels)
    assert found.label_names == names and values.tolist() == ids


def test_integers_are_scores_where_the_config_says_so():
    task, scores = resolved(of_kind("regression"), ["1", "5", "3.5"])
    assert task.is_regression and scores.tolist() == [1.0, 5.0, 3.5]


@pytest.mark.parametrize("dtype", ["int64", "float64", "Int64", "str", "bool", "boolean"])
def test_one_column_of_pandas_is_the_same_classes_in_every_form(tmp_path, dtype):
    """What trains on one of pandas' spellings is evaluated on any other: the truth is pandas' own codes of the column."""
    values = pandas.Series([1, 0, 1, 1, 0])
    task = resolved(of_kind("classification"), values.astype(dtype).astype(str).tolist())[0]
    other = "bool" if "bool" in dtype else "int64"
    for spelled in (dtype, other, "float64"):
        if spelled == "float64" and "bool" in dtype:
            continue
        labels = values.astype(spelled).astype(str).tolist()
        assert resolved(task, labels)[1].tolist() == values.astype("category").cat.codes.tolist()
        lower = [label.lower() for label in labels]  # as JSON and Parquet have them
        assert resolved(task, lower)[1].tolist() == values.tolist()


def test_truths_are_the_second_of_two_classes():
    assert resolved(own("bad", "good"), ["true", "false"])[1].tolist() == [1, 0]
    assert resolved(own("0", "1"), ["True", "False"])[1].tolist() == [1, 0]
    with pytest.raises(DataError, match="unknown label 'true'"):
        resolved(own("a", "b", "c"), ["a", "true"])


def test_a_number_is_no_class_by_its_place_where_names_are_numbers():
    with pytest.raises(DataError, match="unknown label '1'; the labels are '0.5', '1.5'$"):
        resolved(own("0.5", "1.5"), ["0.5", "1"])


@pytest.mark.parametrize(
    ("task", "names"),
    [pytest.param(UNKNOWN, ("neg", "pos"), id="unknown"), pytest.param(own("pos", "neg"), ("pos", "neg"), id="in-another-order")],
)
def test_what_a_file_itself_calls_its_classes(task, names):
    table = LabelTable()
    table.add(["0", "1", "1"])
    found, ids = table.resolve(task, str, names_of_file=("neg", "pos"))
    assert found.label_names == names and [names[index] for index in ids] == ["neg", "pos", "pos"]


def test_what_a_file_calls_its_classes_does_not_count_where_the_config_has_other_names():
    table = LabelTable()
    table.add(["0", "1"])
    assert table.resolve(own("bad", "good"), str, names_of_file=("neg", "pos"))[1].tolist() == [0, 1]


def test_a_number_that_the_file_has_no_name_for():
    table = LabelTable()
    table.add(["0", "-1"])
    with pytest.raises(DataError, match="^row 1: the label is -1, but the file itself names 2 classes, 0 to 1"):
        table.resolve(UNKNOWN, "row {}".format, names_of_file=("neg", "pos"))


def test_integers_are_scores_of_a_known_regression():
    task, scores = resolved(get_task("stsb"), ["5", "3.8", "0.000"])
    assert task.is_regression and scores.tolist() == [5.0, np.float32(3.8), 0.0]


def test_zhang_counts_from_one():
    assert resolved(get_task("ag_news"), ["1", "4", "2"], first_label=1)[1].tolist() == [0, 3, 1]


def test_zhang_copies_that_count_from_zero():
    assert resolved(get_task("ag_news"), ["3", "0", "2"], first_label=1)[1].tolist() == [3, 0, 2]


@pytest.mark.parametrize("withheld", ["-1", "-1.0"])
def test_withheld_labels_are_none(withheld):
    task, labels = resolved(get_task("mnli"), [withheld] * 3, hidden=True)
    assert labels is None and task.name == "mnli"


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        pytest.param(
            "mnli",
            ["neutral", "0", "Neutral"],
            "x, line 3: unknown label 'Neutral'; the labels are 'entailment', 'neutral', 'contradiction' (or their numbers, 0 to 2)",
            id="unknown-name",
        ),
        pytest.param("mnli", ["0", "1", "1", "3"], "x, line 4: unknown label '3'", id="out-of-range"),
        pytest.param("mnli", ["0", "-1"], "x, line 2: unknown label '-1'", id="negative"),
        pytest.param("mnli", ["-1", "-1"], "x, line 1: unknown label '-1'", id="withheld-in-training-data"),
        pytest.param("mnli", ["neutral", ""], "x, line 2: the label is empty", id="empty"),
        pytest.param("mnli", ["neutral", "nan"], "x, line 2: unknown label 'nan'", id="nan-class"),
        pytest.param("mnli", ["0", "0.5"], "x, line 2: unknown label '0.5'", id="fraction"),
        pytest.param("stsb", ["1", "high"], "x, line 2: the label 'high' is not a number", id="score-is-text"),
        pytest.param("stsb", ["1", "NaN"], "x, line 2: the label is NaN; a score must be a finite number", id="score-is-nan"),
        pytest.param("stsb", ["1", "-inf"], "x, line 2: the label is -inf", id="score-is-infinite"),
        pytest.param(own("10", "20"), ["10", "1"], "x, line 2: unknown label '1'; the labels are '10', '20'", id="number-is-no-name"),
        pytest.param(UNKNOWN, ["0", "1", "-2"], "x, line 3: the label is -2: is it a class, a score, or no label?", id="inferred-negative"),
        pytest.param(UNKNOWN, ["a", "b", "nan"], "x, line 3: the label is NaN", id="inferred-nan-among-names"),
        pytest.param(UNKNOWN, ["1.5", "2", "nan"], "x, line 3: the label is nan", id="inferred-nan-among-scores"),
        pytest.param(UNKNOWN, ["a", "a"], "x, line 1: every label is 'a'", id="one-class"),
        pytest.param(UNKNOWN, ["0", "0"], "x, line 1: every label is '0'", id="one-number"),
        pytest.param(UNKNOWN, ["1.0", "2.0", "NA"], "x, line 3: the label is NA, where the others are numbers", id="inferred-na-of-r"),
        pytest.param(UNKNOWN, ["1", "2", "None"], "x, line 3: the label is None, where the others are numbers", id="inferred-none"),
        pytest.param(UNKNOWN, ["1.5", "inf"], "x, line 2: the label is inf", id="inferred-infinity"),
        pytest.param("stsb", ["1", "1e39"], "x, line 2: the label is 1e39, too large for a number of 32 bits", id="score-is-too-large"),
        pytest.param("stsb", ["1", "1_000"], "x, line 2: the label '1_000' is not a number", id="score-with-underscore"),
        pytest.param(of_kind("regression"), ["1", "low"], "x, line 2: the label 'low' is not a number, and this is", id="kind-regression"),
        pytest.param(
            UNKNOWN, [str(900 + i) for i in range(299)], "x, line 1: column 'label' holds 299 different labels", id="a-column-of-ids"
        ),
        pytest.param(UNKNOWN, [f"row{i}" for i in range(MAX_INFERRED_CLASSES + 1)], "column 'label' seems to hold", id="a-column-of-texts"),
    ],
)
def test_faults(task, labels, message):
    with pytest.raises(DataError, match=re.escape(message)):
        resolved(get_task(task), labels)


def test_labels_that_run_from_0_to_n_are_an_error():
    with pytest.raises(DataError, match=re.escape("line 2: unknown label '4'; the labels are 'World'")):
        resolved(get_task("ag_news"), ["0", "4"], first_label=1)


def test_a_metric_that_does_not_fit_the_labels():
    task = get_task(TaskConfig(text_columns=("text",), metric="f1"))
    with pytest.raises(ConfigError, match="metric = 'f1'"):
        resolved(task, ["0.5", "1.5"])
