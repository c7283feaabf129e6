"""What a person gives a Trainer or a model in Python that is not what it takes."""

import json

import pytest

from bertfast import BertClassifier, Trainer
from bertfast.config import TaskConfig
from bertfast.errors import CheckpointError, ConfigError, DataError
from bertfast.readers import RawSplit
from bertfast.tasks import get_task

CONFIG = {"bertfast": {"task": "sst2", "model": {"checkpoint": "bert"}, "run": {"threads": 1}}}


def test_a_trainer_takes_a_file_or_a_dictionary(tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps(CONFIG))
    for given in (CONFIG, tmp_path / "c.yaml", str(tmp_path / "c.yaml")):
        assert Trainer(given, device="cpu").task.name == "sst2"


@pytest.mark.parametrize(
    "given, device, message",
    [
        pytest.param(7, "cpu", "config: is of type int", id="a-number"),
        pytest.param({"task": "sst2"}, "cpu", "'task'", id="the-block-alone"),
        pytest.param(CONFIG, "cuda:0", r"device = 'cuda:0': give 'cpu', 'gpu'", id="a-device-of-torch"),
    ],
)
def test_what_a_trainer_cannot_take_is_named(given, device, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(given, device=device)


@pytest.mark.parametrize("given", [["a good film"], "a good film", {"text": "a"}], ids=["texts", "text", "dictionary"])
def test_a_trainer_answers_no_bare_texts(given):
    with pytest.raises(DataError, match=f"dataset is of type {type(given).__name__}, .*bertfast predict --input"):
        Trainer(CONFIG, device="cpu").predict(given)


@pytest.mark.parametrize("given", [object(), {"a": 1}, None, 3], ids=["model", "dictionary", "none", "number"])
def test_a_model_is_named_by_its_folder(given):
    with pytest.raises(CheckpointError, match=f"is of type {type(given).__name__}; give the path"):
        BertClassifier.from_pretrained(given)


@pytest.mark.parametrize("text", [None, float("nan"), 3])
def test_a_text_in_memory_that_is_none_is_named(text):
    task = get_task(TaskConfig(text_columns=("text",), label_names=("a", "b")))
    with pytest.raises(DataError, match="line 2.*'text'"):
        RawSplit.from_texts(task, ["good", text])
