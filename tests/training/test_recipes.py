"""Whole runs with the recipes' settings: rates by layer on every ZeRO stage and in a resumed run, freezing, documents in pieces."""

import json

import numpy as np
import pytest

from tests.support.runs import losses, train, write_task
from tests.support.tolerances import LOSSES_ZERO_STAGES

QUIET = ("--set", "bertfast.model.hidden_dropout_prob=0", "--set", "bertfast.model.attention_probs_dropout_prob=0")


@pytest.fixture
def task(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(write_task(tmp_path)))
    return tmp_path


def settings(**values):
    return [word for key, value in values.items() for word in ("--set", f"bertfast.{key.replace('__', '.')}={json.dumps(value)}")]


def records(folder, run):
    found = [json.loads(line) for line in (folder / run / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record for record in found if "loss" in record}


def tensors(path):
    from safetensors.numpy import load_file

    return load_file(path / "model.safetensors")


BY_LAYER = settings(optimization__layer_learning_rate_decay=0.5, optimization__schedule="slanted_triangular", run__warmup_steps=4)


def wanted_rates(step):
    """Of the tiny model's parts at a step from 0, of 12: 1e-3 x 0.5^depth x the slanted triangle."""
    p = step / 4 if step < 4 else 1 - (step - 4) / 8
    depths = {"head": 0, "layer 1": 0, "layer 0": 1, "embeddings": 2}
    return {name: 1e-3 * 0.5**depth * (1 + 31 * p) / 32 for name, depth in depths.items()}


def assert_rates(folder, run):
    found = records(folder, run)
    assert list(found) == list(range(1, 13))
    for step, record in found.items():
        assert record["learning_rates"] == pytest.approx(wanted_rates(step - 1), rel=1e-12), step


def test_rates_by_layer_are_exact_on_every_zero_stage(task):
    train(task, "--model_dir", "alone", *BY_LAYER, *QUIET)
    assert_rates(task, "alone")
    truth = losses(task, "alone")
    for stage in range(4):
        train(task, "--model_dir", f"zero{stage}", "--set", f"zero_optimization.stage={stage}", *BY_LAYER, *QUIET, ranks=2)
        assert_rates(task, f"zero{stage}")
        found = losses(task, f"zero{stage}")
        assert max(abs(found[step] - truth[step]) for step in truth) < LOSSES_ZERO_STAGES, stage
    train(task, "--model_dir", "flat", *QUIET)
    assert max(abs(losses(task, "flat")[step] - truth[step]) for step in truth) > 1e-3


@pytest.mark.parametrize(("ranks", "stage"), [(0, 0), (2, 2)], ids=["alone", "zero-2-on-two-ranks"])
def test_rates_and_thawing_go_on_in_a_resumed_run(task, ranks, stage):
    thawing = [*BY_LAYER, *settings(optimization__unfreeze_epochs=0.5, run__keep_checkpoints=9)]
    thawing += ["--set", f"zero_optimization.stage={stage}"]
    train(task, "--model_dir", "whole", *thawing, ranks=ranks)
    checkpoint = task / "whole" / "checkpoints" / "step-00000004"
    train(task, "--model_dir", "rest", "--resume", "--checkpoint_path", str(checkpoint), *thawing, ranks=ranks)
    whole, rest = records(task, "whole"), records(task, "rest")
    assert list(rest) == list(range(5, 13))
    for step, record in rest.items():
        assert record["learning_rates"] == whole[step]["learning_rates"] and record["loss"] == whole[step]["loss"], step
    for step in range(1, 13):  # 6 steps an epoch: layer 1 thaws after 3, layer 0 after 6, the embeddings after 9
        thaws = {"head": 0, "layer 1": 3, "layer 0": 6, "embeddings": 9}
        rates = {name: rate if step > thaws[name] else 0.0 for name, rate in wanted_rates(step - 1).items()}
        assert whole[step]["learning_rates"] == pytest.approx(rates, rel=1e-12), step
    if not ranks:
        output = train(task, "--resume", "--model_dir", "whole", *thawing, *settings(optimization__unfreeze_epochs=0.25), code=2)
        assert "optimization" in output


@pytest.mark.parametrize("ranks", [0, 2], ids=["alone", "zero-2-on-two-ranks"])
def test_what_is_frozen_does_not_move(task, ranks):
    start = tensors(task / "bert")
    train(task, "--set", "zero_optimization.stage=2", *settings(optimization__frozen_layers=1), ranks=ranks)
    moved = {
        name
        for name, tensor in tensors(task / "run" / "model").items()
        if name in start or name.removeprefix("bert.") in start
        if not np.array_equal(tensor, start.get(name, start.get(name.removeprefix("bert."))))
    }
    assert moved and all(name.startswith(("bert.encoder.layer.1.", "bert.pooler.")) for name in moved), moved


def test_documents_in_pieces_train_evaluate_and_predict(task, capsys):
    recipe = settings(
        truncation={"strategy": "hierarchical", "overlap": 2},
        head={"pieces": "attention", "pooling": "mean_max", "layers": [-1, -2], "hidden_sizes": [8]},
        loss={"label_smoothing": 0.1, "class_weights": "balanced", "r_drop": 0.5},
        train_input__max_sequence_length=10,
        eval_input__max_sequence_length=10,
    )
    train(task, *recipe)
    model = task / "run" / "model"
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["BertfastClassifier"] and config["bertfast_head"]["layers"] == [1, 0]
    card = (model / "README.md").read_text()
    assert "read in pieces of 10, whose features are combined by attention" in card and "library_name: bertfast" in card

    from bertfast.cli.entry import main

    wanted = json.loads((task / "run" / "results.json").read_text())["metrics"]["dev"]["accuracy"]
    assert main(["eval", "cpu", "--checkpoint_path", str(model)]) == 0
    assert f"{wanted:.4f}" in capsys.readouterr().out
    (task / "long.txt").write_text("good film " * 40 + "\n\ndull\n")
    assert (
        main(["predict", "cpu", "--checkpoint_path", str(model), "--input", str(task / "long.txt"), "--output", str(task / "out.jsonl")])
        == 0
    )
    assert len((task / "out.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimization__layer_learning_rate": [1e-5, 2e-5, 3e-5]}, "holds 3 rates, but the model has 2 layers"),
        ({"head__layers": [7]}, "bertfast.head.layers holds 7, but the checkpoint has 2 layers"),
        ({"loss__class_weights": [1.0]}, "holds 1 weights, but the task has 2 classes"),
    ],
    ids=["rates", "layers", "weights"],
)
def test_settings_that_do_not_fit_stop_the_run_before_it_begins(task, values, message):
    assert message in train(task, *settings(**values), code=2)
    assert not (task / "run" / "log.jsonl").exists() or not records(task, "run")


def test_a_scheduler_of_deepspeed_s_and_rates_by_layer_are_refused(task):
    scheduler = ["--set", 'scheduler={"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"}}']
    assert "contradicts the scheduler block" in train(task, *scheduler, *settings(optimization__layer_learning_rate_decay=0.9), code=2)
