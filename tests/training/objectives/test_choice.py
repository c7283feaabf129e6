"""Which form of learning a config asks for, and what a form refuses."""

import pytest
import torch

from bertfast.config.load import load_config
from bertfast.engine.ranks import Ranks
from bertfast.errors import ConfigError
from bertfast.training.objectives.choice import FORMS, objective_of
from bertfast.training.objectives.classification import Classification
from bertfast.training.objectives.masked_words import MaskedWords
from bertfast.training.objectives.several_tasks import SeveralTasks

ALONE = Ranks(0, 1, torch.device("cpu"))
TRAIN = {"train_input": {"data_dir": "d"}}
SEVERAL = {"multitask": {"tasks": [{"task": "sst2", "train_input": {"data_dir": "a"}}, {"task": "mnli", "train_input": {"data_dir": "b"}}]}}


def config(**block):
    return load_config({"bertfast": {"model": {"checkpoint": "bert"}, **block}})


@pytest.mark.parametrize(
    ("block", "pretrains", "form"),
    [
        pytest.param({"task": "sst2", **TRAIN}, False, Classification, id="one-task"),
        pytest.param(SEVERAL, False, SeveralTasks, id="several-tasks"),
        pytest.param({"task": "sst2", "pretrain": {}, **TRAIN}, True, MaskedWords, id="pre-training"),
        pytest.param({"task": "sst2", "pretrain": {}, **TRAIN}, False, Classification, id="a-config-of-both-steps-in-training"),
    ],
)
def test_a_config_asks_for_one_form(block, pretrains, form):
    given = config(**block)
    objective = objective_of(given, ALONE, pretrains)
    assert type(objective) is form
    assert (objective.settings.pretrain is not None) == pretrains, "training passes the block by"
    seen = given if pretrains else given.without_pretraining()
    assert [one for one in FORMS if one.fits(seen.bertfast)] == [form]


def test_pre_training_needs_its_block():
    with pytest.raises(ConfigError, match=r"there is no bertfast\.pretrain block"):
        objective_of(config(task="sst2", **TRAIN), ALONE, pretrains=True)


def test_pre_training_needs_to_know_how_long_its_examples_are():
    objective = objective_of(config(task="sst2", pretrain={}), ALONE, pretrains=True)
    with pytest.raises(ConfigError, match=r"there is no bertfast\.train_input; it says how long"):
        objective.training_set(None)


def test_what_answers_no_question_does_not_predict():
    pretraining = objective_of(config(task="sst2", pretrain={}, **TRAIN), ALONE, pretrains=True)
    with pytest.raises(ConfigError, match="has no answers to predict: fine-tune it on a task first"):
        pretraining.predict("folder", "fp32", None, "test")
    several = objective_of(config(**SEVERAL), ALONE)
    with pytest.raises(ConfigError, match="predict"):
        several.predict("folder", "fp32", None, "test")
    with pytest.raises(ConfigError, match="several tasks, each in a folder of its own"):
        several.trained("folder", "fp32")
