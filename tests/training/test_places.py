"""A run that would write over what it reads is refused, by any spelling of the place, before it has written anything."""

import json

import pytest

from bertfast.checks.validate import run_checks
from bertfast.config import load_config
from bertfast.errors import ConfigError
from bertfast.training.places import check_places

BLOCK = {"task": {"text_columns": ["text"]}, "model": {"checkpoint": "bert"}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("bert/config.json", "data/train.csv", "run/model/config.json", "run/model/train.csv", "run/log.jsonl", "run/texts.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "link").symlink_to("run", target_is_directory=True)
    (tmp_path / "hard.jsonl").hardlink_to("run/log.jsonl")
    return tmp_path


def with_model(checkpoint):
    return {"model": {"checkpoint": checkpoint}}


@pytest.mark.parametrize(
    "changes, run, words",
    [
        pytest.param({}, {"model_dir": "bert"}, ["is the folder of a model"], id="the-model-s-own-folder"),
        pytest.param({"train_input": {"data_dir": "data"}}, {"model_dir": "./data"}, ["is the folder of the data", "train_input.data_dir"], id="the-data"),
        pytest.param(with_model("run/model"), {}, ["run/model is written there", "bertfast.model.checkpoint"], id="the-weights-that-it-starts-from"),
        pytest.param(with_model("run"), {}, ["bertfast.model.checkpoint"], id="the-run-that-it-starts-from"),
        pytest.param(with_model("run/model"), {"model_dir": "link"}, ["link/model", "bertfast.model.checkpoint"], id="by-a-link"),
        pytest.param(
            {"model": {"checkpoint": "bert", "tokenizer": "run/../run/model"}}, {}, ["bertfast.model.tokenizer"], id="the-tokenizer"
        ),
        pytest.param({"eval_input": {"data_file": "run/model/train.csv"}}, {}, ["bertfast.eval_input.data_file"], id="data-in-the-model"),
        pytest.param({"train_input": {"data_file": "hard.jsonl"}}, {}, ["run/log.jsonl", "hard.jsonl"], id="the-log-by-a-hard-link"),
        pytest.param({"train_input": {}, "pretrain": {"text_files": ["run/log.jsonl"]}}, {}, ["pretrain.text_files"], id="text"),
        pytest.param(
            {"train_input": {"data_dir": "data"}, "export": {"output": "data"}}, {}, ["data is written there", "train_input.data_dir"], id="the-bundle"
        ),
    ],
)  # fmt: skip
def test_what_a_run_reads_it_does_not_write(changes, run, words):
    config = load_config({"bertfast": {**BLOCK, **changes, "run": {"model_dir": "run", **run}}})
    with pytest.raises(ConfigError) as caught:
        check_places(config)
    assert str(caught.value).startswith("bertfast.run.model_dir = ") and all(word in str(caught.value) for word in words), caught.value


def test_a_config_that_would_be_written_over(folder):
    (folder / "run" / "results.json").write_text(json.dumps({"bertfast": {**BLOCK, "run": {"model_dir": "run"}}}))
    with pytest.raises(ConfigError, match="results.json is written there, and the config is read from"):
        check_places(load_config("run/results.json"))


def test_what_lies_beside_is_no_fault(folder):
    inputs = {"train_input": {"data_file": "run/texts.txt"}, "eval_input": {"data_dir": "run/.."}}
    (folder / "run" / "config.json").write_text(json.dumps({"bertfast": BLOCK}))  # the run's own config, and no model's
    check_places(load_config({"bertfast": {**BLOCK, **inputs, "run": {"model_dir": "run"}}}))
    (folder / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    check_places(load_config({"bertfast": {**BLOCK, **with_model("run/model"), "run": {"model_dir": "run"}}}))


def test_validate_says_so_too():
    config = {"bertfast": {**BLOCK, "train_input": {"data_file": "data/train.csv"}, "run": {"model_dir": "bert"}}}
    (row,) = (check for check in run_checks(lambda: load_config(config), "cpu") if check.name == "config")
    assert row.result == "failed" and "is the folder of a model" in row.detail
