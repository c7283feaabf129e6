"""The exact bytes of both formats."""

import json
import math

import numpy as np
import pytest

from bertfast.config.schema import TaskConfig
from bertfast.errors import ConfigError, NonFiniteLossError
from bertfast.reporting.predictions import choose_format, output_name, prediction_lines, write_predictions
from bertfast.tasks.catalogue import get_task


def logits_for(classes, num_labels):
    return np.eye(num_labels, dtype=np.float32)[classes]


@pytest.mark.parametrize(
    "task, classes, lines",
    [
        pytest.param("cola", [0, 1], ["0", "1"], id="cola"),
        pytest.param("sst2", [1, 0], ["1", "0"], id="sst2"),
        pytest.param("mrpc", [0, 1], ["0", "1"], id="mrpc"),
        pytest.param("qqp", [1, 1], ["1", "1"], id="qqp"),
        pytest.param("wnli", [0, 1], ["0", "1"], id="wnli"),
        pytest.param("mnli", [0, 1, 2], ["entailment", "neutral", "contradiction"], id="mnli"),
        pytest.param("ax", [2, 0], ["contradiction", "entailment"], id="ax"),
        pytest.param("qnli", [0, 1], ["entailment", "not_entailment"], id="qnli"),
        pytest.param("rte", [1, 0], ["not_entailment", "entailment"], id="rte"),
        pytest.param("ag_news", [3, 0], ["Sci/Tech", "World"], id="another-task"),
    ],
)
def test_glue_format_of_classes(tmp_path, task, classes, lines):
    task = get_task(task)
    write_predictions(tmp_path / "a.tsv", task, logits_for(classes, task.num_labels), "glue")
    expected = "index\tprediction\n" + "".join(f"{index}\t{line}\n" for index, line in enumerate(lines))
    assert (tmp_path / "a.tsv").read_bytes() == expected.encode()


def test_glue_format_of_stsb(tmp_path):
    logits = np.array([[2.71828], [-0.4], [-0.0001], [5.0004], [4.9996], [1.0]], dtype=np.float32)
    write_predictions(tmp_path / "a.tsv", get_task("stsb"), logits, "glue")
    expected = b"index\tprediction\n0\t2.718\n1\t0.000\n2\t0.000\n3\t5.000\n4\t5.000\n5\t1.000\n"
    assert (tmp_path / "a.tsv").read_bytes() == expected


def test_another_regression_is_not_clipped():
    task = get_task(TaskConfig(name="stars", text_columns=("text",), metric="pearson"))
    assert list(prediction_lines(task, np.array([[-12.5], [1234567.0]]), "glue"))[1:] == ["0\t-12.5", "1\t1.23457e+06"]


def test_jsonl_of_classes(tmp_path):
    task = get_task(TaskConfig(name="mood", text_columns=("text",), label_names=("trist", "é\tgai")))
    write_predictions(tmp_path / "a.jsonl", task, np.array([[0.0, math.log(3)], [1000.0, -1000.0]]), "jsonl")
    assert (tmp_path / "a.jsonl").read_bytes().decode() == (
        '{"index": 0, "prediction": "é\\tgai", "probabilities": {"trist": 0.25, "é\\tgai": 0.75}}\n'
        '{"index": 1, "prediction": "trist", "probabilities": {"trist": 1.0, "é\\tgai": 0.0}}\n'
    )


def test_jsonl_probabilities_are_those_of_scipy():
    scipy_special = pytest.importorskip("scipy.special")
    logits = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * 5
    records = [json.loads(line) for line in prediction_lines(get_task("mnli"), logits, "jsonl")]
    measured = np.array([list(record["probabilities"].values()) for record in records])
    assert np.abs(measured - scipy_special.softmax(logits.astype(np.float64), axis=1)).max() <= 5.1e-7
    assert [record["index"] for record in records] == list(range(50))


def test_jsonl_of_a_regression():
    assert list(prediction_lines(get_task("stsb"), np.array([[5.25]]), "jsonl")) == ['{"index": 0, "prediction": 5.25}']


def test_a_label_with_a_tab_cannot_stand_in_a_tsv():
    task = get_task(TaskConfig(name="mood", text_columns=("text",), label_names=("a", "b\tc")))
    with pytest.raises(ConfigError, match=r"'b\\tc'.*--format jsonl"):
        prediction_lines(task, np.zeros((1, 2)), "glue")


def test_logits_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"1 of 3 rows.*row 2, from 0"):
        write_predictions(tmp_path / "a.tsv", get_task("sst2"), np.array([[0, 1], [0, 1], [np.nan, 1]]), "glue")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "task, split, name",
    [
        pytest.param("cola", "test", "CoLA", id="cola"),
        pytest.param("sst2", "test", "SST-2", id="sst2"),
        pytest.param("mrpc", "test", "MRPC", id="mrpc"),
        pytest.param("stsb", "test", "STS-B", id="stsb"),
        pytest.param("qqp", "test", "QQP", id="qqp"),
        pytest.param("mnli", "test_matched", "MNLI-m", id="mnli-matched"),
        pytest.param("mnli", "test_mismatched", "MNLI-mm", id="mnli-mismatched"),
        pytest.param("qnli", "test", "QNLI", id="qnli"),
        pytest.param("rte", "test", "RTE", id="rte"),
        pytest.param("wnli", "test", "WNLI", id="wnli"),
        pytest.param("ax", "test", "AX", id="ax"),
        pytest.param("ag_news", "test", "ag_news", id="no-official-name"),
        pytest.param("sst2", "dev", "sst2-dev", id="not-a-test-split"),
    ],
)
def test_names_of_files_in_a_folder(task, split, name):
    assert output_name(get_task(task), split, "glue") == f"{name}.tsv"
    assert output_name(get_task(task), split, "jsonl") == f"{name}.jsonl"


@pytest.mark.parametrize(
    "format, output, expected",
    [
        pytest.param(None, None, "jsonl", id="standard-output"),
        pytest.param(None, "-", "jsonl", id="dash"),
        pytest.param(None, "a.tsv", "glue", id="tsv"),
        pytest.param(None, "a.jsonl", "jsonl", id="jsonl"),
        pytest.param(None, "new/", "glue", id="a-folder-to-be"),
        pytest.param(None, ".", "glue", id="a-folder"),
        pytest.param("jsonl", "a.tsv", "jsonl", id="asked-for"),
    ],
)
def test_the_format_follows_the_output(format, output, expected):
    assert choose_format(format, output) == expected
