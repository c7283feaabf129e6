"""The recipes' flags, named as in the papers' code, and the config keys that they stand for."""

import json
from pathlib import Path

import pytest

from bertfast.cli.parser import overrides, parse_command, parse_launch
from bertfast.config.load import load_config
from bertfast.errors import ConfigError

CONFIG = {"bertfast": {"task": "sst2", "model": {"checkpoint": "bert"}, "pretrain": {}}}


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path / "config.json")


def settings(config_file, command, *flags):
    if command == "launch":
        arguments = parse_launch(["--config", config_file, *flags])
    else:
        arguments = parse_command([command, "--config", config_file, *flags])
    return load_config(config_file, overrides(arguments)).bertfast


@pytest.mark.parametrize("command", ["train", "validate", "launch"])
@pytest.mark.parametrize(
    ("flags", "place", "value"),
    [
        ("--layers 11 10", "head.layers", (11, 10)),
        ("--layers -1 -2 -3", "head.layers", (-1, -2, -3)),
        ("--layers 0", "head.layers", (0,)),
        ("--pooling_type mean", "head.layer_pooling", "mean"),
        ("--pooling attention", "head.pooling", "attention"),
        ("--trunc_medium -2", "truncation.strategy", "head"),
        ("--trunc_medium -1", "truncation.strategy", "tail"),
        ("--trunc_medium 0", "truncation.strategy", "head_tail"),
        ("--trunc_medium 0", "truncation.head_tokens", None),
        ("--trunc_medium 128", "truncation.strategy", "head_tail"),
        ("--trunc_medium 128", "truncation.head_tokens", 128),
        ("--layer_learning_rate 2e-5", "optimization.layer_learning_rate", (2e-5,)),
        ("--layer_learning_rate 1e-5 2e-5", "optimization.layer_learning_rate", (1e-5, 2e-5)),
        ("--layer_learning_rate_decay 0.95", "optimization.layer_learning_rate_decay", 0.95),
        ("--frozen_bert", "optimization.frozen_layers", "all"),
    ],
)
def test_fine_tuning(config_file, command, flags, place, value):
    found = settings(config_file, command, *flags.split())
    for key in place.split("."):
        found = getattr(found, key)
    assert found == value


@pytest.mark.parametrize("flag, head_tokens", [("-2", None), ("-1", None), ("0", None), ("64", 64)])
def test_the_flag_of_truncation_replaces_the_block(config_file, flag, head_tokens):
    for block in ({"strategy": "head_tail", "head_tokens": 128}, {"strategy": "hierarchical", "overlap": 4, "max_pieces": 3}):
        config = {"bertfast": {**CONFIG["bertfast"], "truncation": block}}
        Path(config_file).write_text(json.dumps(config))
        found = settings(config_file, "train", "--trunc_medium", flag).truncation
        assert (found.head_tokens, found.max_pieces) == (head_tokens, None)


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--masked_lm_prob 0.2", "masked_lm_prob", 0.2),
        ("--max_predictions_per_seq 20", "max_predictions_per_seq", 20),
        ("--dupe_factor 5", "dupe_factor", 5),
        ("--do_whole_word_mask", "whole_word_mask", True),
    ],
)
def test_pre_training(config_file, flags, key, value):
    assert getattr(settings(config_file, "pretrain", *flags.split()).pretrain, key) == value
    assert getattr(settings(config_file, "launch", "--mode", "pretrain", *flags.split()).pretrain, key) == value


def test_without_flags_nothing_changes(config_file):
    assert settings(config_file, "train") == load_config(CONFIG).bertfast


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("train", ["--trunc_medium", "-3"], "--trunc_medium -3: give -2"),
        ("train", ["--dupe_factor", "2"], "unknown flag --dupe_factor"),
        ("launch", ["--dupe_factor", "2"], "--dupe_factor is for pretrain, not for train"),
        ("launch", ["--mode", "predict", "--layers", "1"], "--layers is for train and validate, not for predict"),
        (
            "launch",
            ["--mode", "pretrain", "--trunc_medium", "0"],
            "--trunc_medium is for train and validate and eval and predict, not for pretrain",
        ),
        ("train", ["--pooling_type", "sum"], "--pooling_type: invalid choice"),
    ],
)
def test_flags_that_cannot_be_are_named(config_file, command, flags, message):
    with pytest.raises(ConfigError, match=message):
        settings(config_file, command, *flags)
