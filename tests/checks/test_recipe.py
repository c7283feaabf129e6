"""bertfast validate on the recipes' blocks: what the trainer would refuse is refused before any training, in the trainer's words."""

import pytest

from bertfast.checks.validate import run_checks
from bertfast.config.load import load_config
from tests.checks.test_validate import config_of, place, results_of, tiny  # noqa: F401 (fixtures)

TEXT = "the film is good . it was great\nthe dog runs and the cat sleeps\n\nhe was not very good\nshe is fine\n\nthe dull film is bad\na dog sleeps\n"
RATES = {"layer_learning_rate": [1e-4, 2e-4, 3e-4]}


def checks_of(config):
    return {check.name: check for check in run_checks(lambda: load_config(config), "cpu")}


def stars(place):  # noqa: F811
    """A regression."""
    (place / "own.csv").write_text("text,stars\ngood,4.5\nbad,0.5\n")
    return {
        "task": {"text_columns": ["text"], "label_column": "stars"},
        "train_input": {"data_file": str(place / "own.csv")},
        "eval_input": None,
    }


@pytest.mark.parametrize(
    "changes, check, words",
    [
        pytest.param({"loss": {"class_weights": [1, 2, 3]}}, "loss", "holds 3 weights, but the task has 2 classes", id="class-weights"),
        pytest.param({"head": {"layers": [0, 2]}}, "weights", "holds 2, but the checkpoint has 2 layers: 0 to 1", id="head-layers"),
        pytest.param(
            {"optimization": {"frozen_layers": 3}}, "optimizer", "frozen_layers = 3, but the model has 2 layers", id="frozen-layers"
        ),
        pytest.param(
            {"optimization": {"frozen_layers": 2}, "head": {"layers": [0]}},
            "optimizer",
            "the model has 1 layers",
            id="frozen-above-the-head",
        ),
        pytest.param({"optimization": RATES}, "optimizer", "holds 3 rates, but the model has 2 layers", id="rates-of-layers"),
        pytest.param(
            {"optimization": {"schedule": "cosine"}, "deepspeed": {"scheduler": {"type": "WarmupLR", "params": {}}}},
            "optimizer",
            "schedule = 'cosine' contradicts the scheduler block",
            id="two-schedules",
        ),
        pytest.param(
            {"deepspeed": {"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": "auto", "cycle_max_lr": 1e-4}}}},
            "config",
            "cycle_min_lr = 'auto'",
            id="an-auto-without-a-meaning",
        ),
        pytest.param(
            {"truncation": {"strategy": "hierarchical", "overlap": 4}}, "train_input: train", "a piece has room for 4 tokens", id="overlap"
        ),
    ],
)
def test_what_the_trainer_would_refuse(place, changes, check, words):  # noqa: F811
    checks = checks_of(config_of(place, **changes))
    assert checks[check].result == "failed" and words in checks[check].detail, checks[check]
    assert {name: result for name, result in results_of(checks).items() if result == "failed"} == {check: "failed"}


@pytest.mark.parametrize(
    "loss", [{"focal_gamma": 2.0}, {"label_smoothing": 0.1}, {"class_weights": "balanced"}], ids=lambda loss: next(iter(loss))
)
def test_a_loss_for_classes_with_a_regression(place, loss):  # noqa: F811
    checks = checks_of(config_of(place, **stars(place), loss=loss))
    assert checks["loss"].result == "failed" and "are for classes, and this task is a regression" in checks["loss"].detail
    assert checks["one step"].result == "skipped"


def test_a_class_without_rows_cannot_be_balanced(place):  # noqa: F811
    (place / "data" / "train.tsv").write_text("sentence\tlabel\na good film\t1\nfine\t1\n")
    assert "class 0 has no training example" in checks_of(config_of(place, loss={"class_weights": "balanced"}))["loss"].detail


@pytest.mark.parametrize(
    "changes, check, words",
    [
        pytest.param(
            {"optimization": {"unfreeze_epochs": 2}}, "optimizer", "the run ends before layer 0, embeddings are trained", id="thaw"
        ),
        pytest.param({"run": {"epochs": 3, "warmup_steps": 6}}, "optimizer", "still rising at the last step", id="warm-up"),
        pytest.param(
            {"truncation": {"strategy": "head_tail", "head_tokens": 4}}, "train_input: train", "leaves no room for any token", id="no-tail"
        ),
        pytest.param({"loss": {"class_weights": [0, 0]}}, "loss", "nothing is trained", id="no-weights"),
    ],
)
def test_what_is_odd_but_no_fault(place, changes, check, words):  # noqa: F811
    checks = checks_of(config_of(place, **changes))
    assert results_of(checks) == {check: "warning"} and words in checks[check].detail, results_of(checks)


def test_a_recipe_that_is_fine(place):  # noqa: F811
    recipe = {
        "head": {"layers": [-1, -2], "pooling": "mean"},
        "truncation": {"strategy": "head_tail", "head_tokens": 3},
        "loss": {"class_weights": [1, 2], "r_drop": 0.5},
        "optimization": {"layer_learning_rate": [1e-4], "layer_learning_rate_decay": 0.5, "frozen_layers": 0, "schedule": "cosine"},
    }
    checks = checks_of(config_of(place, **recipe))
    assert results_of(checks) == {}
    assert checks["loss"].detail == "cross entropy; r_drop 0.5; class weights 1, 2"
    assert "rates: head 3e-05, layer 1 0.0001, layer 0 5e-05; cosine schedule, 1 of 6 steps" in checks["optimizer"].detail
    assert "guessing" not in checks["one step"].detail and "2 examples" in checks["one step"].detail


# ----------------------------------------------------------------------------------------------------------------------- pre-training


def pretraining(place, pretrain, **changes):  # noqa: F811
    """A config that pre-trains on plain text."""
    (place / "text.txt").write_text(TEXT)
    config = config_of(place, train_input={"max_sequence_length": 16, "batch_size": 2}, eval_input=None, pretrain=pretrain)
    config["bertfast"] |= changes
    return config


def test_pre_training_that_is_fine(place):  # noqa: F811
    text = str(place / "text.txt")
    checks = checks_of(pretraining(place, {"text_files": [text], "eval_text_files": [text]}))
    assert results_of(checks) == {}
    assert list(checks)[-7:] == ["text: train", "text: held out", "weights", "packing", "optimizer", "one step", "memory per rank"]
    assert "text.txt: " in checks["text: train"].detail and "of them masked: loss " in checks["one step"].detail
    loss = float(checks["one step"].detail.partition("loss ")[2].partition(",")[0])
    assert 3.4 < loss < 4.4  # guessing one of 24 tokens, and one of two orders: ln 24 + ln 2 is 3.87


def test_pre_training_on_the_tasks_text(place):  # noqa: F811
    config = config_of(place, pretrain={"next_sentence": False})
    config["bertfast"]["train_input"]["max_sequence_length"] = 16
    checks = checks_of(config)
    assert results_of(checks) == {} and "train.tsv: 4 examples" in checks["text: train"].detail


def test_next_sentences_of_texts_of_one_sentence(place):  # noqa: F811
    (place / "data" / "train.tsv").write_text("sentence\tlabel\n" + "the film is good\t1\nbad\t0\n" * 3)
    config = config_of(place, pretrain={})
    config["bertfast"]["train_input"]["max_sequence_length"] = 16
    checks = checks_of(config)
    assert results_of(checks) == {"text: train": "warning"}
    assert "100% of the pairs have a random second part" in checks["text: train"].detail


@pytest.mark.parametrize(
    "pretrain, changes, check, words",
    [
        pytest.param({"text_files": ["gone.txt"]}, {}, "text: train", "gone.txt: cannot be read", id="no-text"),
        pytest.param({"eval_text_files": ["gone.txt"]}, {}, "text: held out", "gone.txt: cannot be read", id="no-held-out-text"),
        pytest.param({}, {"train_input": {"max_sequence_length": 4}}, "text: train", "set it to 5 or more", id="too-short-for-pairs"),
        pytest.param(
            {"next_sentence": False}, {"train_input": {"max_sequence_length": 2}}, "text: train", "set it to 3 or more", id="too-short"
        ),
        pytest.param(
            {"inputs": [{"data_dir": "x"}]}, {"train_input": {"data_dir": "data"}}, "config", "inputs.0.task is missing", id="no-task"
        ),
        pytest.param(
            {"inputs": [{"task": "rte", "data_dirs": "x"}]},
            {"train_input": {"data_dir": "data"}},
            "config",
            "unknown key 'data_dirs'",
            id="key",
        ),
        pytest.param({}, {"optimization": {"frozen_layers": 5}}, "optimizer", "the model has 2 layers", id="frozen-layers"),
        pytest.param({}, {"train_input": None}, "config", "no bertfast.train_input", id="no-train-input"),
    ],
)
def test_pre_training_that_cannot_be(place, monkeypatch, pretrain, changes, check, words):  # noqa: F811
    monkeypatch.chdir(place)
    given = pretrain if "text_files" in pretrain or "inputs" in pretrain else {"text_files": ["text.txt"], **pretrain}
    config = pretraining(place, given, **changes)
    checks = checks_of(config)
    assert checks[check].result == "failed" and words in checks[check].detail, checks[check]


def test_blocks_that_pre_training_does_not_use(place):  # noqa: F811
    checks = checks_of(pretraining(place, {"text_files": [str(place / "text.txt")]}, loss={"r_drop": 1.0}, eval_input={"data_dir": "data"}))
    assert results_of(checks) == {"text: train": "warning", "text: held out": "warning"}
    assert "bertfast.loss: not for pre-training" in checks["text: train"].detail
