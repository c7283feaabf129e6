"""Results.json, the model card, bertfast.json, and files that are whole or not there."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from bertfast.config.load import load_config
from bertfast.errors import BertfastError
from bertfast.reporting.card import write_model_card
from bertfast.reporting.results import run_facts, write_model_config, write_results
from bertfast.storage.files import replacing, write_json
from bertfast.tasks.catalogue import get_task

MNLI = {
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-5, "weight_decay": 0.01}},
    "zero_optimization": {"stage": 1},
    "bertfast": {
        "task": "mnli",
        "model": {"checkpoint": "bert-base-uncased"},
        "train_input": {"data_dir": "data/MNLI", "max_sequence_length": 96, "batch_size": 32},
        "run": {"model_dir": "runs/mnli"},
    },
}
RESULTS = {
    "metrics": {"dev_matched": {"accuracy": 0.8370123456}, "dev_mismatched": {"accuracy": 0.8483}},
    "training": {"precision": "fp16", "samples_per_second": 1234.5, "zero_stage": 1},
    "run": {"versions": {"torch": "2.13.0", "deepspeed": None}, "commit": "abc", "finished": "2026-01-01T00:00:00+00:00"},
}


def own_task(**changes):
    block = {"name": "mood", "text_columns": ["text"], "label_column": "mood", **changes}
    return load_config({"bertfast": {"task": block, "model": {"checkpoint": "./base"}}})


def card_of(tmp_path, config=None, task=None, results=RESULTS):
    config = config or load_config(MNLI)
    write_model_card(tmp_path, results, config, task or get_task(config.bertfast.task))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return front, yaml.safe_load(front), body


def test_results_are_written_as_json(tmp_path):
    path = write_results(tmp_path / "new" / "run", {"metrics": {"dev": {"accuracy": 0.5}}, "name": "naïve"})
    assert path == tmp_path / "new" / "run" / "results.json"
    assert json.loads(path.read_text(encoding="utf-8")) == {"metrics": {"dev": {"accuracy": 0.5}}, "name": "naïve"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_results(tmp_path, {"old": 1})
    with pytest.raises(TypeError):
        write_results(tmp_path, {"new": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert json.loads((tmp_path / "results.json").read_text()) == {"old": 1}


def test_the_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as file:
        file.write("half")
        file.flush()
        assert not path.exists()
    assert path.read_text() == "half"


def test_a_written_file_has_the_usual_permissions(tmp_path):
    mask = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(mask)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", 1)
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").read_text() == "1\n"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_json(tmp_path / "pipe", {"a": 1})
        assert (tmp_path / "pipe").is_fifo()
        assert json.loads(os.read(reader, 100)) == {"a": 1}
    finally:
        os.close(reader)


@pytest.mark.parametrize("place", [pytest.param("file/a.json", id="below-a-file"), pytest.param("folder", id="a-folder")])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BertfastError, match=r"cannot be written.*give another place") as caught:
        write_json(tmp_path / place, {})
    assert str(tmp_path / place) in str(caught.value)


def test_run_facts_tell_where_the_numbers_come_from(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "__version__", "2.99.0+cu130")  # PyPI's metadata of a CUDA build say 2.99.0
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/bertfast", "train", "--set", "a b"])
    started = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    facts = run_facts(load_config(MNLI), started)
    assert facts["started"] == "2026-01-02T03:04:05+00:00" and facts["finished"] > facts["started"]
    assert facts["command"] == "bertfast train --set 'a b'"
    assert facts["seed"] == 42
    assert facts["versions"]["torch"] == "2.99.0+cu130"
    assert set(facts["versions"]) >= {"python", "bertfast", "transformers", "deepspeed"}
    assert facts["commit"] is None or len(facts["commit"].removesuffix("-dirty")) == 40
    json.dumps(facts)


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    text, front, _ = card_of(tmp_path)
    assert front["base_model"] == "bert-base-uncased"
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-classification"
    assert front["datasets"] == ["nyu-mll/glue"] and front["metrics"] == ["accuracy"]
    assert "license" not in front and "# license: to be filled in" in text
    first = front["model-index"][0]["results"][0]
    assert first["dataset"] == {"name": "mnli", "type": "nyu-mll/glue", "config": "mnli", "split": "validation_matched"}
    assert first["metrics"] == [{"type": "accuracy", "value": 0.837012}]


def test_the_hubs_own_library_reads_the_card(tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card_of(tmp_path)
    data = huggingface_hub.ModelCard.load(tmp_path / "README.md").data
    assert [(result.dataset_split, result.metric_value) for result in data.eval_results] == [
        ("validation_matched", 0.837012),
        ("validation_mismatched", 0.8483),
    ]


def test_the_card_shows_metrics_and_set_up(tmp_path):
    _, _, body = card_of(tmp_path)
    for line in (
        "# bert-base-uncased, fine-tuned on mnli",
        "| 1 | neutral |",
        "| dev_matched | 0.83701 |",
        "| learning rate | 3e-05 |",
        "| zero stage | 1 |",
        "| max sequence length | 96 |",
        "| precision | fp16 |",
        "| samples per second | 1234.5 |",
        "| versions | torch 2.13.0 |",
        "| commit | abc |",
    ):
        assert line in body.splitlines(), line
    assert 'tokenizer("The first text.", "The second text.", truncation=True, max_length=96' in body


@pytest.mark.parametrize(
    ("block", "rate", "decay"),
    [
        pytest.param(None, "3e-05", "0.01", id="no-optimizer-block"),
        pytest.param({"params": {"lr": 2e-5}}, "2e-05", "0.01", id="a-rate-alone"),
        pytest.param({"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}}, "3e-05", "0.01", id="auto"),
        pytest.param({"type": "AdamW", "params": {"lr": 2e-5}}, "2e-05", "0", id="deepspeed-s-own"),
    ],
)
def test_the_card_shows_the_optimizer_that_was_used(tmp_path, block, rate, decay):
    optimizer = {} if block is None else {"optimizer": block}
    _, _, body = card_of(tmp_path, load_config({**optimizer, "bertfast": MNLI["bertfast"]}))
    lines = body.splitlines()
    assert {"| optimizer | AdamW |", f"| learning rate | {rate} |", f"| weight decay | {decay} |"} <= set(lines), lines


def test_a_card_without_an_evaluation_says_so(tmp_path):
    _, front, body = card_of(tmp_path, results={})
    assert "model-index" not in front and "Not evaluated." in body


def test_a_card_of_local_weights_shows_no_path(tmp_path):
    config = own_task(label_names=["sad", "hap|py"])
    _, front, body = card_of(tmp_path, config)
    assert "base_model" not in front and "datasets" not in front
    assert "# base, fine-tuned on mood" in body and "./base" not in body
    assert "| 1 | hap\\|py |" in body
    assert 'tokenizer("A text to judge."' in body


def test_a_card_of_a_regression(tmp_path):
    config = load_config({"bertfast": {**MNLI["bertfast"], "task": "stsb"}})
    _, front, body = card_of(tmp_path, config, results={"metrics": {"dev": {"pearson": 0.9, "spearman": 0.8}}})
    assert front["metrics"] == ["pearsonr", "spearmanr", "pearson_spearman"]
    assert "A BERT regressor of sentence pairs" in body and "## Labels" not in body and "print(logits.item())" in body


def test_a_model_folder_carries_the_labels_that_training_found(tmp_path):
    config = own_task()
    write_model_config(tmp_path, config, get_task(config.bertfast.task).with_labels(("sad", "happy")))
    again = load_config(tmp_path / "bertfast.json")
    task = get_task(again.bertfast.task)
    assert task.label_names == ("sad", "happy") and task.text_columns == ("text",) and task.main_metric == "accuracy"
    assert again.bertfast.run == config.bertfast.run


def test_a_model_folder_of_a_regression_knows_that_it_is_one(tmp_path):
    config = own_task()
    write_model_config(tmp_path, config, get_task(config.bertfast.task).with_labels(None))
    assert get_task(load_config(tmp_path / "bertfast.json").bertfast.task).is_regression


def test_a_known_task_stays_a_name(tmp_path):
    config = load_config(MNLI)
    write_model_config(tmp_path, config, get_task("mnli"))
    assert json.loads(Path(tmp_path / "bertfast.json").read_text())["bertfast"]["task"] == "mnli"


def test_a_score_on_a_subset_is_not_given_as_that_of_the_set(tmp_path):
    raw = {**MNLI, "bertfast": {**MNLI["bertfast"], "eval_input": {"data_dir": "data/MNLI", "max_examples": 100}}}
    _, front, body = card_of(tmp_path, load_config(raw))
    assert "model-index" not in front and "| evaluation examples at most | 100 |" in body


def test_a_card_of_a_head_that_transformers_has_not(tmp_path):
    head = {"layers": [11, 10], "layer_pooling": "mean", "pooling": "attention", "pooler": False, "hidden_sizes": [64]}
    (tmp_path / "config.json").write_text(json.dumps({"bertfast_head": head}))
    _, values, body = card_of(tmp_path)
    assert values["library_name"] == "bertfast"
    assert "an attention over the tokens of encoder layers 11, 10 (mean), counted from 0, and hidden layers of 64 (tanh)" in body
    assert "BertClassifier.from_pretrained(folder)" in body and "model = AutoModel" not in body


@pytest.mark.parametrize(
    ("truncation", "words"),
    [
        ({"strategy": "tail"}, "it reads its tail; bertfast does so"),
        ({"strategy": "head_tail", "head_tokens": 40}, "its first 40 and its last tokens"),
        ({"strategy": "hierarchical"}, "in pieces of 96, whose features are combined by mean"),
    ],
    ids=["tail", "head-tail", "hierarchical"],
)
def test_a_card_tells_which_tokens_are_read(tmp_path, truncation, words):
    config = load_config({**MNLI, "bertfast": {**MNLI["bertfast"], "truncation": truncation}})
    assert words in card_of(tmp_path, config)[2]
    assert words not in card_of(tmp_path)[2]
