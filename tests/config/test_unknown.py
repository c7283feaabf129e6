"""What is said of keys that nobody knows: each hint is a key that a config can have, and none leads astray."""

import json

import pytest

from bertfast.cli import entry
from bertfast.config.load import load_config
from bertfast.config.unknown import KEYS, NONE, meaning, own_places
from bertfast.errors import ConfigError
from bertfast.wording import nearest

BLOCK = {"task": {"text_columns": ["text"]}, "model": {"checkpoint": "bert"}}
VALUES = {  # of keys that take no number
    "optimizer.params": {"lr": 1e-5},
    "optimizer.params.betas": [0.9, 0.999],
    "optimizer.type": "AdamW",
    "scheduler.params": {"warmup_num_steps": 2},
    "zero_optimization.offload_optimizer": {"device": "none"},
    "bertfast.optimization.schedule": "cosine",
    "bertfast.model.gradient_checkpointing": "selective",
    "bertfast.task": "sst2",
    "bertfast.task.metric": "f1",
    "bertfast.task.text_columns": ["a"],
    "bertfast.task.label_column": "label",
}


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config({"bertfast": BLOCK}, list(overrides))
    return str(caught.value)


def take(key, *values):
    """Set a key to the first of the values that it takes."""
    whole = {"bertfast": BLOCK} | ({"scheduler": {"type": "WarmupLR"}} if key.startswith("scheduler.") else {})
    for value in values:
        try:
            return load_config(whole, [f"{key}={json.dumps(value)}"]).to_dict()
        except ConfigError as error:
            assert "unknown key" not in str(error), error
    raise AssertionError(f"{key} takes none of {values}")


@pytest.mark.parametrize("word, key", KEYS.items(), ids=str)
def test_a_word_of_other_tools_stands_for_a_key_that_there_is(word, key):
    node = take(key, *([VALUES[key]] if key in VALUES else [2, 0.5, True, "text"]))
    for part in key.split("."):
        node = node[part]
    for place in (word, f"bertfast.{word}", f"bertfast.run.{word}"):
        if place not in own_places():
            assert message(f"{place}=1").endswith(f"; it is called {key} here")


@pytest.mark.parametrize("word", NONE)
def test_a_word_that_stands_for_nothing_says_what_there_is(word):
    said = message(f"bertfast.run.{word}=1")
    assert said.endswith(f"; bertfast has none: {NONE[word]}") and "did you mean" not in said


def test_keys_named_as_a_remedy_are_there():
    known = {*own_places()}
    for words in NONE.values():
        for word in words.replace(",", " ").replace(";", " ").replace(":", " ").split():
            assert not word.startswith("bertfast.") or word in known, word


@pytest.mark.parametrize(
    "given, hint",
    [
        pytest.param("epochs", "at the top level; it is a key of bertfast.run", id="at-the-top"),
        pytest.param("bertfast.batch_size", "it is a key of bertfast.train_input and of bertfast.eval_input", id="in-two-blocks"),
        pytest.param("bertfast.model.seed", "it is a key of bertfast.run", id="in-another-block"),
        pytest.param("bertfast.run.Learning-Rate", "it is called optimizer.params.lr here", id="other-spelling"),
        pytest.param("bertfast.run.epoch", "did you mean 'epochs'?", id="a-slip"),
        pytest.param("bertfast.run.colour", "known keys: cuda_graphs", id="unheard-of"),
    ],
)
def test_a_key_of_another_block_is_told_its_place(given, hint):
    assert hint in message(f"{given}=1")


@pytest.mark.parametrize(
    "name, known",
    [
        ("precision", "pearson"),
        ("learning_rate", "curriculum_learning"),
        ("--lr", "--layers"),
        ("lora", "loss"),
        ("output_dir", "optimizer"),
        ("add_cross_attention", "sparse_attention"),
    ],
)
def test_what_is_not_near_is_not_suggested(name, known):
    assert nearest(name, [known]) is None


@pytest.mark.parametrize(
    "name, known",
    [("epoch", "epochs"), ("lrr", "lr"), ("stag", "stage"), ("AdanW", "AdamW"), ("acuracy", "accuracy"), ("SST3", "sst2")],
)
def test_a_slip_is_known(name, known):
    assert nearest(name, [known, "something"]) == known


def test_schedules_of_transformers_are_no_flags_of_ours(capsys):
    for flag, hint in (
        ("--learning_rate", "give --set optimizer.params.lr=VALUE"),
        ("--lr", "give --set optimizer.params.lr=VALUE"),
        ("--output_dir", "give --model_dir"),
        ("--output-dir", "give --model_dir"),
        ("--epochs", "give --set bertfast.run.epochs=VALUE"),
        ("--model_name_or_path", "give --checkpoint_path"),
        ("--load_best_model_at_end", "bertfast has none: the model of the best"),
        ("--model-dir", "did you mean --model_dir?"),
    ):
        assert entry.main(["train", "--config", "c.json", f"{flag}=1"]) == 2
        assert hint in capsys.readouterr().err, flag


def test_the_words_of_transformers_trainer_are_known():
    pytest.importorskip("transformers")
    from dataclasses import fields

    from transformers import TrainingArguments

    asked = [
        "output_dir",
        "per_device_train_batch_size",
        "num_train_epochs",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "optim",
        "weight_decay",
        "max_grad_norm",
        "adam_epsilon",
        "label_smoothing_factor",
        "gradient_checkpointing",
        "logging_steps",
        "eval_strategy",
        "eval_steps",
        "per_device_eval_batch_size",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "load_best_model_at_end",
        "metric_for_best_model",
        "report_to",
        "run_name",
        "seed",
        "dataloader_num_workers",
        "resume_from_checkpoint",
        "deepspeed",
        "fsdp",
        "push_to_hub",
        "do_train",
        "max_steps",
        "torch_compile",
    ]
    assert {*asked} <= {field.name for field in fields(TrainingArguments)}
    assert [word for word in asked if meaning(word) == ([], "")] == []
