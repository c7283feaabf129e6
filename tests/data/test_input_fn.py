"""A user's own function, good and bad."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

from bertfast.config.blocks import InputConfig
from bertfast.config.schema import TaskConfig
from bertfast.data import cache
from bertfast.data.load import load_dataset_for
from bertfast.errors import DataError
from bertfast.tasks.catalogue import get_task

UNKNOWN = TaskConfig(text_columns=("text",))


@pytest.fixture
def load(tmp_path, monkeypatch, make_tokenizer):
    """load(source, task, split): write a module with this source, and load the data set of its `make`."""
    monkeypatch.syspath_prepend(tmp_path)

    def loaded(source: str, task="sst2", split="train", function="make", **settings):
        (tmp_path / "own_input.py").write_text("import numpy as np\n" + source)
        sys.modules.pop("own_input", None)
        config = InputConfig(input_fn=f"own_input:{function}", max_sequence_length=6, cache_dir=str(tmp_path / "cache"), **settings)
        return load_dataset_for(task, config, split, make_tokenizer(), seed=1)

    return loaded


def returning(features: str) -> str:
    """A module whose `make` yields one good batch and then these features."""
    good = "{'input_ids': [[2, 5, 3, 0]], 'attention_mask': [[1, 1, 1, 0]], 'token_type_ids': [[0, 0, 0, 0]], 'labels': [1]}"
    return f"def make(params):\n    good = {good}\n    yield good\n    yield {features}\n"


GOOD = """
def make(params):
    assert params["max_sequence_length"] == 6 and params["batch_size"] == 4 and params["mode"] == "train", params
    for number in range(3):
        lengths = np.arange(1, 4) + number
        mask = (np.arange(6) < lengths[:, None]).astype(np.int32)
        yield {
            "input_ids": mask * (5 + number),
            "attention_mask": mask,
            "token_type_ids": mask * 0,
            "labels": np.array([0, 1, number % 2], dtype=np.int32),
        }
"""


@pytest.mark.parametrize("per_batch", [1, 4, 1000])
def test_features_become_a_data_set(load, monkeypatch, per_batch, tmp_path):
    monkeypatch.setattr(cache, "BATCH_EXAMPLES", per_batch)
    dataset = load(GOOD, batch_size=4)
    assert dataset.lengths.tolist() == [1, 2, 3, 2, 3, 4, 3, 4, 5] and dataset.labels.tolist() == [0, 1, 0, 0, 1, 1, 0, 1, 0]
    batch = dataset.batch([8, -1, 3])
    assert batch.input_ids.tolist() == [7] * 5 + [2, 3] + [6] * 2 and batch.labels.tolist() == [0, -100, 0]
    assert dataset.where(4) == "input_fn own_input:make, batch 1, row 1 (from 0)"
    assert dataset.max_sequence_length == 6 and dataset.task == get_task("sst2")
    assert list((tmp_path / "cache").iterdir()) == [], "the file lives as long as the data set"


def test_torch_tensors_and_left_out_token_types(load):
    source = "import torch\ndef make(params):\n    return [{'input_ids': torch.tensor([[2, 3]]), 'attention_mask': torch.ones(1, 2)[:, :].long(), 'labels': torch.tensor([1])}]\n"
    dataset = load(source)
    assert dataset.batch([0]).token_type_ids.tolist() == [0, 0] and dataset.batch([0]).labels.dtype == torch.int32


@pytest.mark.parametrize(
    ("task", "split", "mode"), [("sst2", "dev", "eval"), ("imdb", "test", "eval"), ("sst2", "test", "predict"), ("sst2", "train", "train")]
)
def test_mode(load, task, split, mode):
    source = f"def make(params):\n    assert params['mode'] == {mode!r}\n    return [{{'input_ids': [[2]], 'attention_mask': [[1]], 'labels': [0]}}]\n"
    assert len(load(source, task, split)) == 1


def test_predictions_need_no_labels(load):
    source = "def make(params):\n    return [{'input_ids': [[2, 3]], 'attention_mask': [[1, 1]]}] * 2\n"
    assert load(source, split="test").labels is None
    with pytest.raises(DataError, match=r"input_fn own_input:make, batch 0: there are no labels"):
        load(source, split="dev")


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        pytest.param("[0.5, 2.0]", get_task(UNKNOWN).with_labels(None), id="scores"),
        pytest.param("[0, 2]", get_task(UNKNOWN).with_labels(("0", "1", "2")), id="classes"),
    ],
)
def test_labels_complete_the_task(load, labels, task):
    source = f"def make(params):\n    yield {{'input_ids': [[2], [3]], 'attention_mask': [[1], [1]], 'labels': {labels}}}\n"
    assert load(source, UNKNOWN).task == task


def test_floats_are_no_classes_where_the_config_says_classes(load):
    source = "def make(params):\n    yield {'input_ids': [[2], [3]], 'attention_mask': [[1], [1]], 'labels': [0.5, 2.0]}\n"
    with pytest.raises(DataError, match="batch 0: labels has dtype float64; it must be int32"):
        load(source, TaskConfig(text_columns=("text",), kind="classification"))


def test_whole_numbers_are_scores_of_a_regression(load):
    source = "def make(params):\n    yield {'input_ids': [[2]], 'attention_mask': [[1]], 'labels': [4]}\n"
    assert load(source, "stsb").labels.dtype == np.float32


@pytest.mark.parametrize(
    ("features", "message"),
    [
        pytest.param("[1, 2]", "it is a list; each batch must be a dictionary", id="no-dictionary"),
        pytest.param(
            "{'attention_mask': [[1]], 'labels': [0]}", "there is no input_ids; the features are attention_mask, labels", id="no-ids"
        ),
        pytest.param("{**good, 'attention_mask': None}", "there is no attention_mask", id="no-mask"),
        pytest.param(
            "{**good, 'input_ids': [2, 5, 3, 0]}", "input_ids has shape [4]; it must be [batch, 6], the last being max_seq", id="one-row"
        ),
        pytest.param("{**good, 'attention_mask': [[1, 1, 1]]}", "attention_mask has shape [1, 3] and input_ids [1, 4]", id="other-shape"),
        pytest.param(
            "{'input_ids': np.ones((1, 7), int), 'attention_mask': np.ones((1, 7), int)}", "input_ids has shape [1, 7]", id="too-long"
        ),
        pytest.param(
            "{'input_ids': np.ones((0, 6), int), 'attention_mask': np.ones((0, 6), int)}", "input_ids has shape [0, 6]", id="no-rows"
        ),
        pytest.param("{**good, 'input_ids': [[2.0, 5.0, 3.0, 0.0]]}", "input_ids has dtype float64; it must be int32", id="float-ids"),
        pytest.param("{**good, 'input_ids': [[2, 5], [3]]}", "input_ids cannot be read as an array", id="ragged"),
        pytest.param("{**good, 'attention_mask': [[2, 1, 1, 0]]}", "attention_mask holds 2; it must be 1 for tokens and 0", id="mask-of-2"),
        pytest.param("{**good, 'attention_mask': [[1, 0, 1, 0]]}", "attention_mask: row 0 has padding between its tokens", id="hole"),
        pytest.param("{**good, 'attention_mask': [[0, 0, 0, 0]]}", "attention_mask: row 0 has no token at all", id="no-token"),
        pytest.param(
            "{**good, 'input_ids': [[2, 99, 3, 0]]}", "row 0 (from 0): input_ids holds 99, which is outside the tokenizer's", id="id"
        ),
        pytest.param("{**good, 'input_ids': [[2, -1, 3, 0]]}", "row 0 (from 0): input_ids holds -1", id="negative-id"),
        pytest.param(
            "{**good, 'token_type_ids': [[0, 0, 256, 0]]}", "token_type_ids holds 256, which is outside 0 to 255", id="token-type"
        ),
        pytest.param("{**good, 'labels': [0, 1]}", "labels has shape [2]; it must be [1]", id="labels-shape"),
        pytest.param("{**good, 'labels': [2]}", "labels holds 2; the classes are 0 to 1", id="labels-range"),
        pytest.param("{**good, 'labels': [-1]}", "labels holds -1", id="labels-negative"),
        pytest.param("{**good, 'labels': [0.5]}", "labels has dtype float64; it must be int32", id="labels-float"),
        pytest.param("{**good, 'labels': None}", "there are no labels", id="no-labels"),
        pytest.param("1 / 0", "raised ZeroDivisionError: division by zero", id="raises"),
    ],
)
def test_a_bad_batch_is_named(load, tmp_path, features, message):
    with pytest.raises(DataError) as caught:
        load(returning(features))
    assert re.match(r"input_fn own_input:make(, batch 1|: batch 1) ?", str(caught.value)) and message in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-written is left"


def test_the_row_of_a_bad_id_is_named(load):
    with pytest.raises(DataError, match=re.escape("batch 1, row 2 (from 0): input_ids holds 50")):
        load(returning("{'input_ids': [[2, 3], [5, 3], [2, 50]], 'attention_mask': [[1, 1], [1, 0], [1, 1]], 'labels': [0, 0, 1]}"))


def test_labels_must_not_appear_halfway(load):
    source = "def make(params):\n    one = {'input_ids': [[2]], 'attention_mask': [[1]]}\n    yield one\n    yield {**one, 'labels': [0]}\n"
    with pytest.raises(DataError, match="batch 1: there are labels, and in the batches before there were none"):
        load(source, split="test")


def test_a_score_that_is_nan(load):
    source = "def make(params):\n    yield {'input_ids': [[2]], 'attention_mask': [[1]], 'labels': [float('nan')]}\n"
    with pytest.raises(DataError, match="batch 0: labels holds nan"):
        load(source, "stsb")


def test_one_class_alone(load):
    source = "def make(params):\n    yield {'input_ids': [[2]], 'attention_mask': [[1]], 'labels': [0]}\n"
    with pytest.raises(DataError, match="own_input:make: every label is 0"):
        load(source, UNKNOWN)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("def make(params):\n    return []\n", "own_input:make: it yields no batch", id="no-batch"),
        pytest.param(
            "def make(params):\n    return 5\n", "raised TypeError: 'int' object is not iterable; it must return an iterable", id="number"
        ),
        pytest.param("def make():\n    return []\n", "function(params) raised TypeError", id="no-parameter"),
        pytest.param("make = 3\n", "own_input:make: make is a int, not a function", id="not-callable"),
        pytest.param("def maker(params):\n    return []\n", "has no 'make'; did you mean 'maker'?", id="attribute"),
        pytest.param(
            "import not_a_module_at_all\n", "the module own_input cannot be imported (ModuleNotFoundError: No module named", id="import"
        ),
        pytest.param("def make(:\n", "the module own_input cannot be imported (SyntaxError", id="syntax"),
    ],
)
def test_a_function_that_cannot_be_called(load, source, message):
    with pytest.raises(DataError, match=re.escape(message)):
        load(source)


@pytest.mark.parametrize("name", ["own_input.make", "own_input:", ":make"])
def test_a_name_that_is_none(name, make_tokenizer):
    with pytest.raises(DataError, match=f"input_fn = '{name}': write it as package.module:function"):
        load_dataset_for("sst2", InputConfig(input_fn=name), "train", make_tokenizer(), 1)


def test_a_module_that_is_not_there(make_tokenizer):
    with pytest.raises(DataError, match="the module no_such_module cannot be imported"):
        load_dataset_for("sst2", InputConfig(input_fn="no_such_module:make"), "train", make_tokenizer(), 1)


def test_a_module_in_the_working_folder(tmp_path, monkeypatch, make_tokenizer):
    (tmp_path / "here_input.py").write_text(
        "def make(params):\n    return [{'input_ids': [[2]], 'attention_mask': [[1]], 'labels': [1]}]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    config = InputConfig(input_fn="here_input:make", cache_dir=str(tmp_path))
    assert len(load_dataset_for("sst2", config, "train", make_tokenizer(), 1)) == 1
